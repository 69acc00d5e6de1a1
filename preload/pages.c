/* A fork of a template has no huge pages. */
#include <stdlib.h>
#include <sys/prctl.h>

/* QEMU asks for them where it puts what it translates (tcg/region.c) and for RAM, which a fork maps from a file and
 * cannot have in them. What it touches first of 2 MiB would be 2 MiB of its own: 3 of a fork's 30, and no time gained.
 */
__attribute__((constructor)) static void refuse_huge_pages(void)
{
    if (getenv("VMFORK_SMALL_PAGES") != NULL)
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}
