#include "memory.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "message.h"

static const char *const NAMES[] = {"mem", "pagemap"};

enum { NAMED = sizeof NAMES / sizeof *NAMES };

void memory_lend_folder(int line)
{
    int folder = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return;
    send_opened(line, 0, &folder, 1);
    close(folder);
}

void memory_receive(struct memory *memory)
{
    int passed[PASSED_LIMIT], next = 0;
    uint8_t which;
    int count = receive_opened(memory->line, &which, passed);
    for (int index = 0; index < OPENED_LIMIT && next < count; index++)
        if (which & 1 << index)
            memory->opened[index] = passed[next++];
    close_all(passed + next, count < 0 ? 0 : count - next);
    /* One message is all that it says: from then on it runs what its guest may have taken over. */
    close_all(&memory->line, 1);
}

static void open_named(struct memory *memory, pid_t program)
{
    char path[64];
    for (int index = 0; index < NAMED; index++) {
        snprintf(path, sizeof path, "/proc/%d/%s", program, NAMES[index]);
        if (memory->opened[index] < 0)
            memory->opened[index] = open(path, O_RDONLY | O_CLOEXEC);
    }
}

bool memory_answer(struct memory *memory, int socket, pid_t program)
{
    int all[OPENED_LIMIT + HELD_LIMIT], count = 0;
    uint32_t which = 0;
    open_named(memory, program);
    for (int index = 0; index < OPENED_LIMIT + memory->held_count; index++) {
        int each = index < OPENED_LIMIT ? memory->opened[index] : memory->held[index - OPENED_LIMIT];
        if (each < 0)
            continue;
        which |= UINT32_C(1) << index;
        all[count++] = each;
    }
    return send_answer(socket, OK, which, all, count);
}
