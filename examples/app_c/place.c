/* SPDX-License-Identifier: BSD-2-Clause */
/* Where a message lies: at a guest address, reached through the guest's translation of the moment,
 * or in a registered buffer, reached through the pages that were pinned. There it may cross a page.
 */
#include "mini.h"

static uint64_t address_in(const struct buffer *buffer, uint64_t position)
{
    position += buffer->offset;
    return buffer->frames[position / APP_PAGE] + position % APP_PAGE;
}

int read_message(struct mini *mini, struct guest *guest, const struct call *call, uint32_t from,
                 unsigned char *to, uint32_t length)
{
    if (call->carrier == NULL)
        return app_read_guest(&mini->app, guest->id, call->page + from, length, to);
    while (length != 0) {
        uint64_t pa = address_in(call->carrier, (uint64_t)call->position + from);
        uint32_t part = (uint32_t)(APP_PAGE - pa % APP_PAGE);
        int status;

        if (part > length)
            part = length;
        status = app_read_pinned(&mini->app, guest->id, pa, part, to);
        if (status != APP_OK)
            return status;
        from += part;
        to += part;
        length -= part;
    }
    return APP_OK;
}

/* Offsets of the segments count from byte base of the message. */
int write_message(struct mini *mini, struct guest *guest, const struct call *call, uint32_t base,
                  const struct app_segment *segments, size_t count)
{
    struct app_segment first[MAX_PARAMS + 2], second[MAX_PARAMS + 2];
    size_t firsts = 0, seconds = 0, n;
    uint64_t start, pa;
    uint32_t inside;
    int status = APP_OK;

    if (call->carrier == NULL) {
        for (n = 0; n < count; n++) {
            first[n] = segments[n];
            first[n].offset += base;
        }
        return app_write_guest(&mini->app, guest->id, call->page, first, count);
    }
    start = (uint64_t)call->position + base;
    pa = address_in(call->carrier, start);
    inside = (uint32_t)(pa % APP_PAGE);
    for (n = 0; n < count; n++) {
        struct app_segment one = segments[n];

        one.offset += inside;
        if (one.offset >= APP_PAGE) {
            one.offset -= APP_PAGE;
            second[seconds++] = one;
        } else if (one.offset + one.length <= APP_PAGE) {
            first[firsts++] = one;
        } else {
            struct app_segment rest = one;

            one.length = APP_PAGE - one.offset;
            rest.offset = 0;
            rest.length -= one.length;
            rest.data = (const unsigned char *)rest.data + one.length;
            first[firsts++] = one;
            second[seconds++] = rest;
        }
    }
    if (firsts != 0)
        status = app_write_pinned(&mini->app, guest->id, pa - inside, first, firsts);
    if (status == APP_OK && seconds != 0) {
        pa = address_in(call->carrier, start - inside + APP_PAGE);
        status = app_write_pinned(&mini->app, guest->id, pa, second, seconds);
    }
    return status;
}
