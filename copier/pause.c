#include "pause.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "../keeper/clock.h"
#include "copy.h"
#include "monitor.h"

/* How it works. While the machine stands still only this counts: stop, save the devices, go on. What was written since
 * the last round is copied while QEMU saves; what comes after that, which nobody has seen, has the devices saved again.
 *
 * A second process looks on. It holds the monitor's connection too, and lets the machine run on when the first ends, or
 * takes too long, before it has said that it did so itself. */

enum {
    STOP_LIMIT_MS = 5000,
    BEGIN_LIMIT_MS = 5000,
    SAVE_LIMIT_MS = 10000,
    GO_ON_LIMIT_MS = 5000,
    WHOLE_LIMIT_MS = 30000,
    SAVES = 4
};

#define LAST_ID "\"id\": \"last\""
static const char LAST_GO_ON[] = "{\"execute\": \"cont\", " LAST_ID "}";
static const char STOP[] = "{\"execute\": \"stop\"}", GO_ON[] = "{\"execute\": \"cont\"}";

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static _Noreturn void look_on(int told, pid_t worker)
{
    struct pollfd readable = {told, POLLIN, 0};
    char done;
    prctl(PR_SET_NAME, "vmfork-copy-end");
    setsid();
    bool spoke = poll(&readable, 1, WHOLE_LIMIT_MS) > 0;
    if (!spoke || read(told, &done, 1) != 1) {
        if (!spoke)
            kill(worker, SIGKILL);
        monitor_send(LAST_GO_ON);
        /* Not closed before QEMU has read it, whatever else it has answered before. */
        monitor_wait_for(LAST_ID, now_ms() + GO_ON_LIMIT_MS);
    }
    _exit(0);
}

/* The end through which it is told that all is well; -1 when there is none. */
static int start_onlooker(void)
{
    int ends[2];
    pid_t self = getpid();
    if (pipe(ends) != 0)
        return -1;
    pid_t onlooker = fork();
    if (onlooker == 0) {
        close(ends[1]);
        look_on(ends[0], self);
    }
    close(ends[0]);
    if (onlooker > 0)
        return ends[1];
    close(ends[1]);
    return -1;
}

static const char *lend_state(int state, char *save, size_t size)
{
    static const char KEY[] = "\"fdset-id\": ";
    bool sent = monitor_send_with("{\"execute\": \"add-fd\"}", state);
    const char *answer = sent ? monitor_wait(now_ms() + STOP_LIMIT_MS) : NULL;
    const char *number = answer == NULL ? NULL : strstr(answer, KEY);
    if (number == NULL)
        return "QEMU does not take the file for its state";
    snprintf(save, size,
             "{\"execute\": \"xen-save-devices-state\", \"arguments\": {\"filename\": \"/dev/fdset/%ld\", \"live\": "
             "false}}",
             strtol(number + sizeof KEY - 1, NULL, 10));
    return NULL;
}

static int64_t copy_written(const struct work *work)
{
    return pages_find(&work->memory, work->memory.way == TWICE ? OWN : WRITTEN, copy_run);
}

/* Whether what was seen once is not seen again, so that what is left after the saving was written during it. */
static bool sees_new(const struct work *work)
{
    return work->memory.way == WATCHED;
}

/* One saving, and what is copied beside it. `late` are pages that were copied after it. */
static const char *save_once(const struct work *work, const char *save, struct spent *spent, int64_t *late)
{
    int64_t begun = now_us();
    if (ftruncate(work->state, 0) != 0 || lseek(work->state, 0, SEEK_SET) != 0)
        return "the file for the state cannot be emptied";
    if (!monitor_send(save))
        return "QEMU's monitor is gone";
    int64_t pages = sees_new(work) ? copy_written(work) : 0;
    bool is_saved = monitor_wait(now_ms() + SAVE_LIMIT_MS) != NULL;
    spent->save_us += now_us() - begun;
    if (!is_saved)
        return "QEMU does not save its devices";
    *late = copy_written(work);
    spent->pages += pages + *late;
    return pages < 0 || *late < 0 ? "the pages cannot be copied" : NULL;
}

static const char *begin_beside(const struct work *work)
{
    if (work->beside[0] == 0 || monitor_ask(work->beside, BEGIN_LIMIT_MS) != NULL)
        return NULL;
    return "QEMU does not begin what is copied beside the memory";
}

static const char *save_all(const struct work *work, const char *save, struct spent *spent)
{
    const char *stuck = begin_beside(work);
    if (stuck != NULL)
        return stuck;
    for (int saves = 0; saves < SAVES; saves++) {
        int64_t late;
        const char *failed = save_once(work, save, spent, &late);
        if (failed != NULL || !sees_new(work) || late == 0)
            return failed;
    }
    return "its memory changes while it stands still";
}

static const char *go_on(struct spent *spent)
{
    int64_t begun = now_us();
    bool runs = monitor_ask(GO_ON, GO_ON_LIMIT_MS) != NULL;
    spent->go_on_us = now_us() - begun;
    return runs ? NULL : "QEMU does not let the machine run on";
}

static const char *stop_and_copy(const struct work *work, const char *save, struct spent *spent)
{
    int onlooker = start_onlooker();
    if (onlooker < 0)
        return "no process can be started to look on";
    int64_t begun = now_us();
    const char *failed = monitor_ask(STOP, STOP_LIMIT_MS) == NULL ? "QEMU does not stop the machine" : NULL;
    spent->stop_us = now_us() - begun;
    if (failed == NULL)
        failed = save_all(work, save, spent);
    const char *stuck = go_on(spent);
    spent->pause_us = now_us() - begun;
    if (stuck == NULL && write(onlooker, "+", 1) != 1)
        stuck = "the process that looks on is gone";
    close(onlooker);
    return failed != NULL ? failed : stuck;
}

const char *pause_and_copy(const struct work *work, struct spent *spent)
{
    char save[160];
    const char *failed = lend_state(work->state, save, sizeof save);
    if (failed != NULL)
        return failed;
    const char *status = monitor_ask("{\"execute\": \"query-status\"}", STOP_LIMIT_MS);
    if (status == NULL)
        return "QEMU does not tell whether the machine runs";
    /* One that its user has paused stays so. */
    return strstr(status, "\"running\": true") != NULL ? stop_and_copy(work, save, spent) : save_all(work, save, spent);
}
