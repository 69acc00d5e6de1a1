/* LEFT and TAKE: programs that run on though their client is gone, as in a fork of a running machine. */
#include "answer.h"
#include "operation.h"
#include "process.h"
#include "stream.h"

static void put_left(struct stream *s)
{
    if (s->id == 0)
        process_put(s);
}

void do_left(uint32_t stream, struct fields *f)
{
    (void)f;
    size_t mark = frame_begin(outbox(), REPLY, stream);
    processes_each(put_left);
    end_reply(stream, mark);
}

void do_take(uint32_t stream, struct fields *f)
{
    uint64_t number;
    bool is_read = field_number(field_take(f), &number);
    struct stream *s = is_read ? stream_find_left(number) : NULL;
    if (!is_read)
        send_invalid(stream, "the number of a program is needed");
    else if (s == NULL || !process_is(s))
        send_error(stream, "not-found", "no program was left under that number", 0);
    else
        process_take(s, stream);
}
