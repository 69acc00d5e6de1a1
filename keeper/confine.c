#include "confine.h"

#include <asm/ioctls.h>
#include <asm/sockios.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifdef __x86_64__
enum { OWN_ARCH = AUDIT_ARCH_X86_64 };
#else
enum { OWN_ARCH = AUDIT_ARCH_AARCH64 };
#endif
/* Calls from here on came with Linux 6.13 and later, or are those of another ABI (x32). What they do is not known here,
 * and a program lives without them. */
enum { UNKNOWN_CALLS = 463 };
/* Of Linux 6.6; the number is the same everywhere, and not every libc has its name. */
enum { CALL_FCHMODAT2 = 452 };

/* The same as QEMU denies itself with obsolete, elevateprivileges, spawn and resourcecontrol=deny (QEMU 7.2,
 * softmmu/qemu-seccomp.c), and what else reaches other processes or the kernel. */
static const uint32_t DENIED[] = {
#ifdef __x86_64__
    SYS_fork,
    SYS_vfork,
    SYS_uselib,
    SYS_ustat,
    SYS_sysfs,
    SYS__sysctl,
    SYS_afs_syscall,
    SYS_create_module,
    SYS_get_kernel_syms,
    SYS_query_module,
    SYS_getpmsg,
    SYS_putpmsg,
    SYS_security,
    SYS_tuxcall,
    SYS_vserver,
    SYS_iopl,
    SYS_ioperm,
    SYS_creat,
    SYS_rename,
    SYS_mkdir,
    SYS_rmdir,
    SYS_link,
    SYS_unlink,
    SYS_symlink,
    SYS_mknod,
    SYS_chmod,
    SYS_chown,
    SYS_lchown,
    SYS_utime,
    SYS_utimes,
    SYS_futimesat,
#endif
    /* Names and what belongs to them: a program that starts with all that it needs open changes none. */
    SYS_truncate,
    SYS_renameat,
    SYS_renameat2,
    SYS_mkdirat,
    SYS_linkat,
    SYS_unlinkat,
    SYS_symlinkat,
    SYS_mknodat,
    SYS_fchmod,
    SYS_fchmodat,
    CALL_FCHMODAT2,
    SYS_fchown,
    SYS_fchownat,
    SYS_utimensat,
    SYS_setxattr,
    SYS_lsetxattr,
    SYS_fsetxattr,
    SYS_removexattr,
    SYS_lremovexattr,
    SYS_fremovexattr,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    SYS_chroot,
    /* Whatever does all of that, or reads and writes, past a filter. */
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_splice,
    SYS_tee,
    SYS_vmsplice,
    /* Connections and memory that others share: those it has were passed to it. */
    SYS_socket,
    SYS_bind,
    SYS_connect,
    SYS_shmget,
    SYS_shmat,
    SYS_shmctl,
    SYS_semget,
    SYS_semop,
    SYS_semtimedop,
    SYS_semctl,
    SYS_msgget,
    SYS_msgsnd,
    SYS_msgrcv,
    SYS_msgctl,
    SYS_mq_open,
    SYS_mq_unlink,
    /* Other processes. */
    SYS_tkill,
    SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo,
    SYS_pidfd_open,
    SYS_pidfd_getfd,
    SYS_pidfd_send_signal,
    SYS_process_madvise,
    SYS_kcmp,
    SYS_perf_event_open,
    SYS_ioprio_set,
    SYS_sched_setattr,
    SYS_execveat,
    SYS_setuid,
    SYS_setgid,
    SYS_setpgid,
    SYS_setsid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_setgroups,
    SYS_setpriority,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_sched_setaffinity,
    SYS_readahead,
    SYS_quotactl,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_syslog,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_unshare,
    SYS_setns,
    SYS_kexec_load,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_bpf,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
};

enum { DENIED_COUNT = sizeof DENIED / sizeof *DENIED, STEPS_LIMIT = DENIED_COUNT * 2 + 96 };

struct program {
    struct sock_filter steps[STEPS_LIMIT];
    unsigned short count;
};

static void add(struct program *program, struct sock_filter step)
{
    program->steps[program->count++] = step;
}

static void load(struct program *program, size_t offset)
{
    add(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void give(struct program *program, uint32_t verdict)
{
    add(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, verdict));
}

/* Adds the verdict for one system call; other calls go on to the next instruction. */
static void judge(struct program *program, uint32_t call, uint32_t verdict)
{
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
    give(program, verdict);
}

/* Adds the verdicts for one system call: `met` where an argument's lower half passes `test` (BPF_JEQ, BPF_JSET) with
 * one of `values`, else `other`. */
static void judge_by(struct program *program, uint32_t call, int argument, uint16_t test, const uint32_t *values,
                     int count, uint32_t met, uint32_t other)
{
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, (uint8_t)(2 * count + 2)));
    load(program, offsetof(struct seccomp_data, args) + (size_t)argument * sizeof(uint64_t));
    for (int index = 0; index < count; index++) {
        add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | test | BPF_K, values[index], 0, 1));
        give(program, met);
    }
    give(program, other);
}

/* To be told of a socket or a file by a signal, and who is told: anybody of the same user. */
static const uint32_t SIGNALLING_IOCTLS[] = {FIOSETOWN, SIOCSPGRP};
static const uint32_t SIGNALLING_FCNTLS[] = {F_SETOWN, F_SETOWN_EX, F_SETSIG, F_SETLEASE, F_NOTIFY};
static const uint32_t WRITING[] = {O_WRONLY, O_RDWR, O_CREAT, O_TRUNC};

enum { IOCTLS = sizeof SIGNALLING_IOCTLS / sizeof(uint32_t), FCNTLS = sizeof SIGNALLING_FCNTLS / sizeof(uint32_t) };
enum { WAYS = sizeof WRITING / sizeof(uint32_t) };

/* What is passed to it open is all that it writes to. A filter cannot see which file a path leads to: none is opened
 * for writing, so that what was passed for reading cannot be opened again for more by way of /proc/self/fd. */
static void judge_opening(struct program *program)
{
    const uint32_t refused = SECCOMP_RET_ERRNO | EACCES;
#ifdef SYS_open
    judge_by(program, SYS_open, 1, BPF_JSET, WRITING, WAYS, refused, SECCOMP_RET_ALLOW);
#endif
    judge_by(program, SYS_openat, 2, BPF_JSET, WRITING, WAYS, refused, SECCOMP_RET_ALLOW);
    /* Its flags lie in memory; who is told that there is none uses openat. */
    judge(program, SYS_openat2, SECCOMP_RET_ERRNO | ENOSYS);
}

/* The kernel lets a process signal every other one of its user; a user namespace changes nothing in that. */
static void judge_signals(struct program *program, uint32_t self)
{
    const uint32_t refused = SECCOMP_RET_ERRNO | EPERM, own[] = {self}, own_limits[] = {0, self};
    judge_by(program, SYS_kill, 0, BPF_JEQ, own, 1, SECCOMP_RET_ALLOW, refused);
    judge_by(program, SYS_tgkill, 0, BPF_JEQ, own, 1, SECCOMP_RET_ALLOW, refused);
    judge_by(program, SYS_prlimit64, 0, BPF_JEQ, own_limits, 2, SECCOMP_RET_ALLOW, refused);
    judge_by(program, SYS_fcntl, 1, BPF_JEQ, SIGNALLING_FCNTLS, FCNTLS, refused, SECCOMP_RET_ALLOW);
}

/* Of an emulator whose guest has a way out, which it makes itself: sockets of IP, which it connects, and binds to no
 * port that it chooses. It shares the network with sockets that have a name and no file (unix(7)): no socket of its own
 * leads to those, of a pair neither. */
static void judge_sockets(struct program *program)
{
    const uint32_t refused = SECCOMP_RET_ERRNO | EPERM, families[] = {AF_INET, AF_INET6};
    judge_by(program, SYS_socket, 0, BPF_JEQ, families, 2, SECCOMP_RET_ALLOW, refused);
    judge(program, SYS_socketpair, refused);
    judge(program, SYS_connect, SECCOMP_RET_ALLOW);
}

static void write_filter(struct program *program, uint32_t self, bool outward)
{
    load(program, offsetof(struct seccomp_data, arch));
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0));
    give(program, SECCOMP_RET_KILL_PROCESS);
    load(program, offsetof(struct seccomp_data, nr));
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, UNKNOWN_CALLS, 0, 1));
    give(program, SECCOMP_RET_ERRNO | ENOSYS);
    /* First, since every exit of a guest under KVM is one. */
    judge_by(program, SYS_ioctl, 1, BPF_JEQ, SIGNALLING_IOCTLS, IOCTLS, SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW);
    judge(program, SYS_execve, SECCOMP_RET_USER_NOTIF);
    judge_opening(program);
    judge_signals(program, self);
    if (outward)
        judge_sockets(program);
    for (int index = 0; index < DENIED_COUNT; index++)
        judge(program, DENIED[index], SECCOMP_RET_ERRNO | EPERM);
    /* Its flags lie in memory, where a filter cannot look; who is told that there is none uses clone. */
    judge(program, SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);
    const uint32_t threads[] = {CLONE_THREAD};
    judge_by(program, SYS_clone, 0, BPF_JSET, threads, 1, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM);
    give(program, SECCOMP_RET_ALLOW);
}

union control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static bool send_descriptor(int socket, int fd)
{
    union control control = {{0}};
    struct iovec piece = {"", 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
    return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

/* -1 when the other end is closed. */
static int receive_descriptor(int socket)
{
    union control control;
    char byte;
    int fd = -1;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *part = size == 1 ? CMSG_FIRSTHDR(&message) : NULL;
    if (part != NULL && part->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(part), sizeof fd);
    return fd;
}

bool confine_self(int keeper, bool outward)
{
    struct program program = {.count = 0};
    write_filter(&program, (uint32_t)getpid(), outward);
    struct sock_fprog filter = {.len = program.count, .filter = program.steps};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return false;
    /* The kernel gives a descriptor on which it asks; it is closed on exec. */
    long asked = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (asked < 0)
        return false;
    bool sent = send_descriptor(keeper, (int)asked);
    close((int)asked);
    return sent;
}

void allow_start(int program, int process)
{
    int asked = receive_descriptor(program);
    if (asked < 0)
        return;
    struct pollfd waits[] = {{.fd = asked, .events = POLLIN}, {.fd = process, .events = POLLIN}};
    struct seccomp_notif question;
    memset(&question, 0, sizeof question);
    while (poll(waits, 2, -1) < 0 && errno == EINTR)
        ;
    if ((waits[0].revents & POLLIN) && ioctl(asked, SECCOMP_IOCTL_NOTIF_RECV, &question) == 0) {
        struct seccomp_notif_resp answer = {.id = question.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        ioctl(asked, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
    /* Nobody is asked any more, and every further start is refused (ENOSYS). */
    close(asked);
}
