/* SPDX-License-Identifier: BSD-2-Clause */
/* Everything that is taken (a page, a name, a pin) is given back here and nowhere else. */
#include <string.h>

#include "mini.h"

uint32_t get32(const unsigned char *from)
{
    uint32_t value;

    memcpy(&value, from, sizeof value);
    return value;
}

uint64_t get64(const unsigned char *from)
{
    uint64_t value;

    memcpy(&value, from, sizeof value);
    return value;
}

void put32(unsigned char *to, uint32_t value)
{
    memcpy(to, &value, sizeof value);
}

void put64(unsigned char *to, uint64_t value)
{
    memcpy(to, &value, sizeof value);
}

uint64_t pair(uint64_t high, uint64_t low)
{
    return (high & LOW) << 32 | (low & LOW);
}

int finding(struct mini *mini, struct guest *guest, const char *text)
{
    int status;

    if (++guest->findings > FINDINGS)
        return APP_OK;
    status = trace_finding(mini, guest, text);
    if (status != APP_OK)
        return status;
    return app_log(&mini->app, guest->id, text, strlen(text));
}

/* --- pages ----------------------------------------------------------------------------------- */

int take_page(struct mini *mini, struct shadow *page)
{
    uint64_t offset;
    int status;

    if (mini->free_count != 0) {
        *page = mini->free_pages[--mini->free_count];
        return APP_OK;
    }
    page->mem = NULL;
    status = app_alloc_shadow(&mini->app, 1, &offset, &page->pa);
    if (status == APP_OK)
        page->mem = mini->app.arena + offset;
    return status;
}

/* Zeroed, so that nothing travels from guest to guest. */
int give_page(struct mini *mini, struct shadow *page)
{
    struct shadow given = *page;

    page->mem = NULL;
    if (given.mem == NULL)
        return APP_OK;
    if (mini->free_count == FREE_PAGES)
        return app_free_shadow(&mini->app, &given.pa, 1);
    memset(given.mem, 0, APP_PAGE);
    mini->free_pages[mini->free_count++] = given;
    return APP_OK;
}

/* --- names ----------------------------------------------------------------------------------- */

struct buffer *find_buffer(struct guest *guest, uint64_t reference)
{
    size_t n;

    for (n = 0; n < BUFFERS; n++) {
        struct buffer *buffer = &guest->buffers[n];

        if (buffer->used && buffer->named && buffer->reference == reference)
            return buffer;
    }
    return NULL;
}

struct rpc_buffer *find_rpc_buffer(struct guest *guest, uint64_t cookie)
{
    size_t n;

    for (n = 0; n < RPC_BUFFERS; n++)
        if (guest->rpc_buffers[n].used && guest->rpc_buffers[n].cookie == cookie)
            return &guest->rpc_buffers[n];
    return NULL;
}

/* Whether a call in flight, other than but, names the reference in its message. */
int names(const struct guest *guest, uint64_t reference, const struct call *but)
{
    size_t n, at;

    for (n = 0; n < CALLS; n++) {
        const struct call *call = &guest->calls[n];

        for (at = 0; call->used && call != but && at < call->named_count; at++)
            if (call->named[at] == reference)
                return 1;
    }
    return 0;
}

/* --- buffers --------------------------------------------------------------------------------- */

uint32_t reserve(struct guest *guest, enum kind kind, uint64_t address, uint64_t size,
                 uint64_t reference, struct buffer **out)
{
    uint64_t offset = address % APP_PAGE, pages;
    struct buffer *free = NULL;
    size_t n;

    for (n = BUFFERS; n-- != 0;)
        if (!guest->buffers[n].used)
            free = &guest->buffers[n];
    /* Before anything is added: the sum of a huge size must not wrap. */
    if (size > (uint64_t)BUFFER_PAGES * APP_PAGE)
        return TEE_ERROR_OUT_OF_MEMORY;
    pages = (offset + size + APP_PAGE - 1) / APP_PAGE;
    if (pages > BUFFER_PAGES || free == NULL || guest->pages + pages > TOTAL_PAGES)
        return TEE_ERROR_OUT_OF_MEMORY;
    if (pages == 0 || find_buffer(guest, reference) != NULL)
        return TEE_ERROR_BAD_PARAMETERS;
    memset(free, 0, offsetof(struct buffer, frames));
    free->used = free->named = 1;
    free->kind = kind;
    free->reference = reference;
    free->list_ipa = address - offset;
    free->offset = (uint32_t)offset;
    free->pages = (uint32_t)pages;
    guest->pages += free->pages;
    *out = free;
    return 0;
}

static int trace_buffer(struct mini *mini, const struct guest *guest, const struct buffer *buffer,
                        const char *name)
{
    const struct word words[4] = {WORD(guest->id), WORD((uint64_t)buffer->kind),
                                  WORD(buffer->reference), WORD(buffer->pinned)};

    return trace(mini, name, words, 4, NULL, 0);
}

/* Reads the guest's page list once, pins what it names, and makes the TEE's list of the frames. */
int walk(struct mini *mini, struct guest *guest, struct buffer *buffer, uint32_t *result)
{
    uint64_t words[BUFFER_PAGES], link;
    int status;

    *result = TEE_ERROR_OUT_OF_MEMORY;
    status = take_page(mini, &buffer->list);
    if (status != APP_OK)
        return status < 0 ? status : APP_OK;
    *result = TEE_ERROR_BAD_PARAMETERS;
    status = app_read_page_list(&mini->app, guest->id, buffer->list_ipa, buffer->pages, &link,
                                words);
    if (status != APP_OK)
        return status < 0 ? status : APP_OK;
    status = app_pin_pages(&mini->app, guest->id, words, buffer->pages, buffer->frames);
    if (status != APP_OK)
        return status < 0 && status != APP_TOO_MUCH ? status : APP_OK;
    buffer->pinned = buffer->pages;
    memcpy(buffer->list.mem, buffer->frames, buffer->pages * sizeof buffer->frames[0]);
    *result = 0;
    return trace_buffer(mini, guest, buffer, "BufferTaken");
}

int let_go(struct mini *mini, struct guest *guest, struct buffer *buffer)
{
    int status = APP_OK;

    guest->pages -= buffer->pages;
    buffer->used = 0;
    if (buffer->pinned != 0)
        status = app_unpin_pages(&mini->app, guest->id, buffer->frames, buffer->pinned);
    if (status == APP_OK)
        status = give_page(mini, &buffer->list);
    if (status == APP_OK)
        status = trace_buffer(mini, guest, buffer, "BufferReleased");
    return status;
}

/* Forgets the name at once; the pages when no call uses them any more. call: the one that took the
 * buffer and is over. */
int release_buffer(struct mini *mini, struct guest *guest, struct buffer *buffer,
                   const struct call *call)
{
    if (buffer->named)
        buffer->named = 0;
    else if (buffer->lingers)
        return APP_OK;
    if (buffer->users != 0) {
        buffer->doomed = 1;
        return APP_OK;
    }
    /* Of registered memory the TEE says itself when it has let go, by accepting UNREGISTER. */
    if (buffer->kind != REGISTERED && names(guest, buffer->reference, call)) {
        buffer->lingers = 1;
        return APP_OK;
    }
    return let_go(mini, guest, buffer);
}

int release_buffers(struct mini *mini, struct guest *guest, struct call *call)
{
    struct buffer *last = call->walk;
    uint32_t n, count = call->buffer_count;
    int status = APP_OK;

    call->walk = NULL;
    call->buffer_count = 0;
    if (last != NULL)
        status = release_buffer(mini, guest, last, call);
    for (n = 0; status == APP_OK && n < count; n++)
        status = release_buffer(mini, guest, call->buffers[n], call);
    return status;
}

int release_rpc_buffer(struct mini *mini, struct guest *guest, struct rpc_buffer *buffer)
{
    int status = APP_OK;

    buffer->used = 0;
    if (buffer->frame != 0)
        status = app_unpin_pages(&mini->app, guest->id, &buffer->frame, 1);
    if (status == APP_OK)
        status = give_page(mini, &buffer->shadow);
    return status;
}

/* --- calls ----------------------------------------------------------------------------------- */

/* What a call holds for itself; its buffers are decided by its command. */
int release_call(struct mini *mini, struct guest *guest, struct call *call)
{
    struct buffer *carrier = call->carrier;
    size_t n;
    int status;

    call->used = call->suspended = 0;
    status = give_page(mini, &call->shadow);
    if (status == APP_OK)
        status = give_page(mini, &call->alloc_list);
    if (status == APP_OK && carrier != NULL && --carrier->users == 0 && carrier->doomed)
        status = let_go(mini, guest, carrier);
    /* Those of a guest that ends go one by one, in steps that may be stopped. */
    for (n = 0; status == APP_OK && !guest->dying && n < BUFFERS; n++) {
        struct buffer *buffer = &guest->buffers[n];

        if (buffer->used && buffer->lingers && !names(guest, buffer->reference, NULL))
            status = let_go(mini, guest, buffer);
    }
    return status;
}

int drop_call(struct mini *mini, struct guest *guest, struct call *call)
{
    int status = release_buffers(mini, guest, call), released = release_call(mini, guest, call);

    return status == APP_OK ? released : status;
}
