/* Stands in for an emulator that its guest has taken over. It tries what such a one would, each act once, and says how
 * the kernel answered: a line with the act's name, and "done" or the number of the error.
 *
 * escape -name OWNER,SIBLING,FD,PATH ...: the pids of its owner and of another machine, a descriptor of the template's
 * RAM, and the path of the same file. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void tell(const char *act, long result)
{
    if (result >= 0)
        printf("%s done\n", act);
    else
        printf("%s %d\n", act, errno);
}

static void try_memory(const char *whose, int pid)
{
    char path[64], act[64], word[8] = "vmfork";
    struct iovec here = {word, sizeof word}, there = {(void *)0x400000, sizeof word};
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    snprintf(act, sizeof act, "open-memory-of-%s", whose);
    tell(act, open(path, O_RDWR));
    snprintf(act, sizeof act, "read-memory-of-%s", whose);
    tell(act, open(path, O_RDONLY));
    snprintf(act, sizeof act, "write-memory-of-%s", whose);
    tell(act, process_vm_writev(pid, &here, 1, &there, 1, 0));
    snprintf(act, sizeof act, "trace-%s", whose);
    tell(act, ptrace(PTRACE_SEIZE, pid, 0, 0));
    snprintf(act, sizeof act, "signal-%s", whose);
    tell(act, kill(pid, 0));
    snprintf(act, sizeof act, "signal-thread-of-%s", whose);
    tell(act, syscall(SYS_tkill, pid, 0));
    snprintf(act, sizeof act, "handle-of-%s", whose);
    tell(act, syscall(SYS_pidfd_open, pid, 0));
    snprintf(act, sizeof act, "limits-of-%s", whose);
    tell(act, prlimit(pid, RLIMIT_CORE, NULL, NULL));
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    snprintf(act, sizeof act, "environment-of-%s", whose);
    tell(act, open(path, O_RDONLY));
}

static void try_template(int fd, const char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    tell("template-reopened", open(link, O_RDWR));
    tell("template-by-path", open(path, O_RDWR));
    tell("template-written", pwrite(fd, "escape", 6, 0));
    tell("template-cut", ftruncate(fd, 0));
    tell("template-punched", fallocate(fd, 3, 0, 4096)); /* FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE */
    tell("template-mapped", mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
    char *mapped = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    tell("template-made-writable", mapped == MAP_FAILED ? -1 : mprotect(mapped, 4096, PROT_READ | PROT_WRITE));
    tell("template-opened-to-all", fchmod(fd, 0666));
    tell("template-linked", linkat(fd, "", AT_FDCWD, "/tmp/vmfork-escape", AT_EMPTY_PATH));
    unlink("/tmp/vmfork-escape");
    int pipes[2];
    if (pipe(pipes) == 0 && write(pipes[1], "escape", 6) == 6) {
        loff_t start = 0;
        tell("template-spliced", splice(pipes[0], NULL, fd, &start, 6, 0));
    }
    tell("template-by-handle", syscall(SYS_open_by_handle_at, fd, &(struct file_handle){0}, O_RDWR));
}

static void try_host(void)
{
    struct sockaddr_un bus = {AF_UNIX, "/run/dbus/system_bus_socket"};
    char *const argv[] = {"true", NULL}, *const env[] = {NULL};
    tell("create-in-etc", open("/etc/vmfork-escape", O_WRONLY | O_CREAT, 0644));
    tell("create-in-tmp", open("/tmp/vmfork-escape", O_WRONLY | O_CREAT, 0644));
    tell("open-shadow", open("/etc/shadow", O_RDONLY));
    tell("make-folder", mkdir("/tmp/vmfork-escape-folder", 0755));
    tell("remove", unlink("/etc/vmfork-escape"));
    tell("remove-folder", rmdir("/tmp/vmfork-escape-folder"));
    unlink("/tmp/vmfork-escape");
    int line = socket(AF_UNIX, SOCK_STREAM, 0);
    tell("connect", line < 0 ? -1 : connect(line, (struct sockaddr *)&bus, sizeof bus));
    tell("network", socket(AF_INET, SOCK_DGRAM, 0));
    tell("shared-memory", shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600));
    tell("owner-signalled", fcntl(0, F_SETOWN, getppid()));
    long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    tell("process", child);
    /* Who may mount is told that there is no such place. */
    tell("mount", mount("none", "/vmfork-nowhere", "tmpfs", 0, NULL));
    tell("root", setuid(0));
    tell("ring", syscall(SYS_io_uring_setup, 1, (char[256]){0}));
    tell("more-descriptors", setrlimit(RLIMIT_NOFILE, &(struct rlimit){4096, 4096}));
    tell("namespace", unshare(CLONE_NEWUSER)); /* done: this one may do nothing more as root */
    fflush(stdout);
    tell("program", execve("/bin/true", argv, env)); /* done: this one says no more */
}

static void tell_self(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct own[_LINUX_CAPABILITY_U32S_3];
    memset(own, 0xff, sizeof own);
    syscall(SYS_capget, &header, own);
    printf("=capabilities %d\n", (own[0].permitted | own[1].permitted | own[0].effective | own[1].effective) != 0);
    printf("=user %u\n", (unsigned)getuid());
    printf("=host %d\n", access("/etc/passwd", F_OK) == 0 || access("/proc/self", F_OK) == 0);
    for (char **variable = environ; *variable != NULL; variable++)
        printf("=variable %.*s\n", (int)strcspn(*variable, "="), *variable);
}

int main(int argc, char **argv)
{
    int owner = 0, sibling = 0, fd = -1;
    char path[4096] = "";
    for (int index = 1; index + 1 < argc; index++)
        if (strcmp(argv[index], "-name") == 0)
            sscanf(argv[index + 1], "%d,%d,%d,%4095s", &owner, &sibling, &fd, path);
    setvbuf(stdout, NULL, _IOLBF, 0);
    tell_self();
    try_memory("owner", owner);
    try_memory("sibling", sibling);
    try_template(fd, path);
    try_host();
    puts("=end 0");
    return 0;
}
