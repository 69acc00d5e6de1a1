"""A template whose forks are alike although nobody reseeds them: their kernels do not do so by themselves meanwhile."""

from __future__ import annotations

# A young kernel reseeds itself each half of the time that it has been up (Linux 6.12, drivers/char/random.c: at least a
# second, at most a minute), in a work item of its own, and mixes in what differs from fork to fork. So the last steps
# of a warm-up wait for that; the next is more than 10 s off. With 4 s to the next, two forks once differed on a busy
# host. To ask the kernel for one (RNDRESEEDCRNG) does not put off the next, which once came between the draws of forks
# on a quiet host.
JUST_RESEEDED = (
    "sleep 24",
    """
mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing
echo 1 >events/workqueue/workqueue_execute_start/enable
timeout 90 grep -q 'function crng_reseed$' trace_pipe || exit 1
echo 0 >events/workqueue/workqueue_execute_start/enable
cd /
umount /sys/kernel/tracing
""",
)
