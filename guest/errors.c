#include "errors.h"

#include <errno.h>
#include <stddef.h>

/* clang-format off */
static const struct {
    int error;
    const char *code;
} CODES[] = {
    {ENOENT, "not-found"},     {ENXIO, "not-found"},         {EACCES, "denied"},           {EPERM, "denied"},
    {EROFS, "denied"},         {EEXIST, "exists"},           {EISDIR, "is-directory"},     {ENOTDIR, "not-directory"},
    {ENOTEMPTY, "not-empty"},  {ENOSPC, "no-space"},         {EDQUOT, "no-space"},         {EBUSY, "busy"},
    {ETXTBSY, "busy"},         {EINVAL, "invalid"},          {ENAMETOOLONG, "invalid"},    {ELOOP, "invalid"},
    {E2BIG, "invalid"},       {ECONNREFUSED, "refused"},     {ECONNRESET, "reset"},
};
/* clang-format on */

const char *error_code(int error)
{
    for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++)
        if (CODES[i].error == error)
            return CODES[i].code;
    return "io";
}
