#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fatal.h"
#include "path.h"

static const char MODULES[] = "/etc/vmfork/modules";

static const struct {
    const char *type;
    const char *target;
    unsigned long flags;
    const char *options;
} MOUNTS[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755"},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

static const char *const LINKS[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

static const char *const ENVIRONMENT[][2] = {
    {"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    {"HOME", "/root"},
    {"USER", "root"},
    {"LANG", "C.UTF-8"},
};

/* What cannot be told before the console is open. */
static int mount_errors[sizeof MOUNTS / sizeof *MOUNTS];

static void mount_all(void)
{
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++) {
        mkdir(MOUNTS[i].target, 0755);
        int done = mount(MOUNTS[i].type, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].options);
        mount_errors[i] = done == 0 || errno == EBUSY ? 0 : errno;
    }
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++)
        (void)!symlink(LINKS[i][0], LINKS[i][1]);
}

static void tell_mount_errors(void)
{
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++)
        if (mount_errors[i] != 0)
            complain("cannot mount", MOUNTS[i].target, mount_errors[i]);
}

/* The kernel found no console in the initramfs and started us without descriptors. */
static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    if (fd < 0)
        return;
    for (int i = 0; i < 3; i++)
        if (i != fd)
            dup2(fd, i);
    if (fd > 2)
        close(fd);
}

static void set_environment(void)
{
    /* The kernel passes what it does not know of its command line as variables; none is meant for programs. */
    clearenv();
    for (size_t i = 0; i < sizeof ENVIRONMENT / sizeof *ENVIRONMENT; i++)
        setenv(ENVIRONMENT[i][0], ENVIRONMENT[i][1], 1);
}

static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        complain("cannot open module", path, errno);
        return;
    }
    if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
        complain("cannot load module", path, errno);
    close(fd);
}

/* A line is the path of a module; after a space, the path of a device without which it is not needed. */
static void load_listed(char *line)
{
    const char *module = strsep(&line, " ");
    if (module[0] == '/' && (line == NULL || access(line, F_OK) == 0))
        load_module(module);
}

static void load_modules(void)
{
    FILE *list = fopen(MODULES, "re");
    char line[4096];
    if (list == NULL)
        return;
    while (fgets(line, sizeof line, list) != NULL) {
        line[strcspn(line, "\n")] = 0;
        load_listed(line);
    }
    fclose(list);
}

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP | IFF_RUNNING;
        if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
            complain("cannot raise", "lo", errno);
    }
    close(fd);
}

static void set_hostname(void)
{
    char name[65];
    read_text("/etc/hostname", name, sizeof name);
    if (name[0] == 0)
        strcpy(name, "vmfork");
    if (sethostname(name, strlen(name)) != 0)
        complain("cannot set the host name to", name, errno);
}

void init_machine(void)
{
    umask(022);
    mount_all();
    open_console();
    tell_mount_errors();
    set_environment();
    load_modules();
    raise_loopback();
    set_hostname();
    make_folders("/run/vmfork");
}

_Noreturn void init_power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
    fatal_errno("the machine could not be powered off");
}
