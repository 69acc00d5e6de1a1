/* A process that serves the program, as passt does an emulator whose card leads out by it. */
#ifndef VMFORK_BESIDE_H
#define VMFORK_BESIDE_H

#include <stdbool.h>
#include <stdint.h>

#include "groups.h"

/* Its pidfd, the claim on the user that it became, and the path of the program's monitor; then what is said there while
 * `line` is open, until `deadline`. */
struct beside {
    int process;
    int lease;
    const char *monitor;
    int line;
    int64_t deadline;
};

/* It is limited as the program is, in the same groups. */
bool beside_join(const struct beside *beside, const struct groups *groups);

/* It has ended before the program: that is asked to let its guest see a card without a carrier. */
void beside_tell(struct beside *beside);

/* What the program's monitor answers. */
void beside_read(struct beside *beside);

/* A monitor that greets and says no more is left alone. */
void beside_check_deadline(struct beside *beside);

/* It has ended, since the program has. */
void beside_end(const struct beside *beside);

#endif
