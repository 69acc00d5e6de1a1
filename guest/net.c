/* NET: the card that leads out of the machine has an Ethernet address of the machine's own, and an address or none. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answer.h"
#include "mode.h"
#include "operation.h"

/* How it works. The card is taken down first, whatever it was: a copy of a running machine has the addresses of that
 * machine still. The Ethernet address comes before the rest, since whoever learns one keeps it: QEMU's user network
 * sent answers to the former one for five seconds and more. With the card down no way leads over it, so that what
 * wants out fails at once. */

enum { MAC_BYTES = 6, MAC_DIGITS = 2 * MAC_BYTES, LONGEST_PREFIX = 30 };

static const char CARDS[] = "/sys/class/net";

struct wanted {
    char mac[MAC_DIGITS + 1];
    bool is_up;
    struct in_addr address;
    struct in_addr mask;
    struct in_addr gateway;
};

static bool take_address(struct fields *f, struct in_addr *out)
{
    char text[INET_ADDRSTRLEN];
    return field_text(field_take(f), text, sizeof text) && inet_pton(AF_INET, text, out) == 1;
}

static bool take_mask(struct fields *f, struct in_addr *out)
{
    uint64_t prefix;
    if (!field_number(field_take(f), &prefix) || prefix < 1 || prefix > LONGEST_PREFIX)
        return false;
    out->s_addr = htonl(UINT32_MAX << (32 - prefix));
    return true;
}

static bool take_wanted(struct fields *f, struct wanted *w)
{
    size_t count = f->count;
    struct field mac = field_take(f);
    if (!field_is_hex(mac, MAC_DIGITS) || !field_text(mac, w->mac, sizeof w->mac))
        return false;
    w->is_up = count == 4;
    return count == 1 ||
           (w->is_up && take_address(f, &w->address) && take_mask(f, &w->mask) && take_address(f, &w->gateway));
}

/* The first with a device behind it: neither the loopback nor what programs make has one. */
static bool find_card(char name[IFNAMSIZ])
{
    DIR *folder = opendir(CARDS);
    bool found = false;
    if (folder == NULL)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(folder)) != NULL;) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s/device", CARDS, entry->d_name);
        found = entry->d_name[0] != '.' && strlen(entry->d_name) < IFNAMSIZ && access(path, F_OK) == 0;
        if (found)
            strcpy(name, entry->d_name);
    }
    closedir(folder);
    if (!found)
        errno = ENODEV;
    return found;
}

static struct ifreq request_for(const char *name)
{
    struct ifreq request = {0};
    strcpy(request.ifr_name, name);
    return request;
}

static bool set_up(int fd, const char *name, bool up)
{
    struct ifreq request = request_for(name);
    if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
        return false;
    request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    return ioctl(fd, SIOCSIFFLAGS, &request) == 0;
}

static int digit(char of)
{
    return of <= '9' ? of - '0' : of - 'a' + 10;
}

static bool set_mac(int fd, const char *name, const char *digits)
{
    struct ifreq request = request_for(name);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    for (int i = 0; i < MAC_BYTES; i++)
        request.ifr_hwaddr.sa_data[i] = (char)(digit(digits[2 * i]) << 4 | digit(digits[2 * i + 1]));
    return ioctl(fd, SIOCSIFHWADDR, &request) == 0;
}

static bool set_address(int fd, const char *name, unsigned long what, struct in_addr address)
{
    struct ifreq request = request_for(name);
    struct sockaddr_in value = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(&request.ifr_addr, &value, sizeof value);
    return ioctl(fd, what, &request) == 0;
}

static bool set_gateway(int fd, struct in_addr gateway)
{
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in any = {.sin_family = AF_INET}, by = {.sin_family = AF_INET, .sin_addr = gateway};
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    memcpy(&route.rt_gateway, &by, sizeof by);
    return ioctl(fd, SIOCADDRT, &route) == 0;
}

/* The kernel tells the network whose the address is by now, once the card comes up (ip-sysctl.rst: arp_notify). */
static bool announce_when_up(const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/arp_notify", name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool written = write(fd, "1", 1) == 1;
    close(fd);
    return written;
}

static bool raise_card(int fd, const char *name, const struct wanted *w)
{
    return announce_when_up(name) && set_address(fd, name, SIOCSIFADDR, w->address) &&
           set_address(fd, name, SIOCSIFNETMASK, w->mask) && set_up(fd, name, true) && set_gateway(fd, w->gateway);
}

static bool change(int fd, const char *name, const struct wanted *w)
{
    return set_up(fd, name, false) && set_mac(fd, name, w->mac) &&
           set_address(fd, name, SIOCSIFADDR, (struct in_addr){0}) && (!w->is_up || raise_card(fd, name, w));
}

static void put_mac(int fd, const char *name)
{
    struct ifreq request = request_for(name);
    char digits[MAC_DIGITS + 1] = "";
    if (ioctl(fd, SIOCGIFHWADDR, &request) == 0)
        for (int i = 0; i < MAC_BYTES; i++)
            snprintf(digits + 2 * i, 3, "%02x", (unsigned char)request.ifr_hwaddr.sa_data[i]);
    put_text(outbox(), digits);
}

/* Empty where it has none. */
static void put_address(int fd, const char *name)
{
    struct ifreq request = request_for(name);
    char text[INET_ADDRSTRLEN] = "";
    struct sockaddr_in found;
    if (ioctl(fd, SIOCGIFADDR, &request) == 0) {
        memcpy(&found, &request.ifr_addr, sizeof found);
        inet_ntop(AF_INET, &found.sin_addr, text, sizeof text);
    }
    put_text(outbox(), text);
}

static void answer(uint32_t stream, int fd, const char *name)
{
    size_t mark = frame_begin(outbox(), REPLY, stream);
    put_text(outbox(), name);
    put_mac(fd, name);
    put_address(fd, name);
    end_reply(stream, mark);
}

void do_net(uint32_t stream, struct fields *f)
{
    struct wanted wanted = {0};
    char name[IFNAMSIZ];
    if (!take_wanted(f, &wanted)) {
        send_invalid(stream, "12 hex digits are needed, and an address, a prefix from 1 to 30 and a gateway if any");
        return;
    }
    if (!mode.privileged) {
        send_error(stream, "unsupported", "this agent may not change the network", 0);
        return;
    }
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || !find_card(name))
        send_errno(stream, "the guest has no network card", errno);
    else if (!change(fd, name, &wanted))
        send_errno(stream, "the network card could not be set up", errno);
    else
        answer(stream, fd, name);
    if (fd >= 0)
        close(fd);
}
