#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fatal.h"
#include "path.h"

static const char PORTS[] = "/sys/class/virtio-ports";

static int listen_uevents(void)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    if (fd < 0 || bind(fd, (struct sockaddr *)&kernel, sizeof kernel) != 0)
        fatal_errno("cannot listen for devices");
    return fd;
}

static bool has_name(const char *port, const char *name)
{
    char path[512], found[128];
    snprintf(path, sizeof path, "%s/%s/name", PORTS, port);
    read_text(path, found, sizeof found);
    return strcmp(found, name) == 0;
}

static bool find(const char *name, char *device, size_t size)
{
    DIR *ports = opendir(PORTS);
    const struct dirent *entry;
    bool found = false;
    if (ports == NULL)
        return false;
    while (!found && (entry = readdir(ports)) != NULL) {
        found = entry->d_name[0] != '.' && has_name(entry->d_name, name);
        if (found)
            snprintf(device, size, "/dev/%s", entry->d_name);
    }
    closedir(ports);
    return found;
}

static void wait_uevent(int events)
{
    char event[8192];
    /* ENOBUFS: events were lost, which is an event too. */
    if (recv(events, event, sizeof event, 0) < 0 && errno != EINTR && errno != ENOBUFS)
        fatal_errno("cannot wait for devices");
}

/* Listening starts before the first look, so a port that appears in between is not missed. The kernel announces a port
 * a second time when its name is known. */
int port_open(const char *name)
{
    char device[512];
    int events = listen_uevents();
    while (!find(name, device, sizeof device))
        wait_uevent(events);
    close(events);
    int fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        fatal_errno("cannot open the port to the host");
    return fd;
}
