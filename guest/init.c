#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "defaults.h"
#include "fatal.h"
#include "hostname.h"
#include "modules.h"
#include "mounts.h"
#include "path.h"
#include "root.h"
#include "scratch.h"

static const char MODULES[] = "/etc/vmfork/modules";

static const char *const ENVIRONMENT[][2] = {
    {"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    {"HOME", "/root"},
    {"USER", "root"},
    {"LANG", "C.UTF-8"},
};

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

/* As systemd on Debian does. The kernel gives init 4096 open files at most, and only root could have more. */
static void set_limits(void)
{
    struct rlimit files = {.rlim_cur = 1024, .rlim_max = 1024 * 1024};
    if (setrlimit(RLIMIT_NOFILE, &files) != 0)
        complain("cannot set", "the limit of open files", errno);
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
    char name[LONGEST_HOSTNAME + 1];
    read_text("/etc/hostname", name, sizeof name);
    if (name[0] == 0)
        strcpy(name, "vmfork");
    if (!hostname_set(name))
        complain("cannot set the host name to", name, errno);
}

/* What a root on a disk is found with. */
static void prepare_disk(void)
{
    open_console();
    modules_load(MODULES);
}

void init_machine(void)
{
    umask(022);
    mounts_make(root_from_disk(prepare_disk));
    open_console();
    mounts_complain();
    mounts_limit_root();
    set_limits();
    set_environment();
    defaults_take();
    modules_load(MODULES);
    scratch_mount();
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
