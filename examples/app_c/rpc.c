/* SPDX-License-Identifier: BSD-2-Clause */
/* RPC rounds: a suspended call goes to the guest and comes back. What the TEE asked is noted when
 * the call leaves; the guest's answer is read once and judged against that. */
#include <string.h>

#include "mini.h"

static uint32_t attribute_type(const unsigned char *param)
{
    return get32(param + AT_ATTR) & OPTEE_MSG_ATTR_TYPE_MASK;
}

static int is_temporary(const unsigned char *param)
{
    uint32_t type = attribute_type(param);

    return type >= OPTEE_MSG_ATTR_TYPE_TMEM_INPUT && type <= OPTEE_MSG_ATTR_TYPE_TMEM_INOUT;
}

/* The TEE's RPC message, or null: behind the call's message, or in an RPC buffer. */
static unsigned char *place(struct call *call, uint32_t *room)
{
    if (call->rpc_at != 0) {
        *room = call->rpc_room;
        return call->shadow.mem + call->rpc_at;
    }
    if (call->rpc_buffer == NULL || !call->rpc_buffer->used ||
        call->rpc_buffer->serial != call->rpc_serial)
        return NULL;
    *room = MAX_PARAMS;
    return call->rpc_buffer->shadow.mem;
}

/* Writes to the guest's RPC message. */
static int write_request(struct mini *mini, struct guest *guest, struct call *call,
                         const struct app_segment *segments, size_t count)
{
    if (call->rpc_at != 0)
        return write_message(mini, guest, call, call->rpc_at, segments, count);
    return app_write_guest(&mini->app, guest->id, call->rpc_buffer->ipa, segments, count);
}

/* Copies the TEE's request to the guest. */
static int request_out(struct mini *mini, struct guest *guest, struct call *call,
                       enum leaving *how)
{
    struct app_segment whole = {0, 0, NULL};
    uint32_t room = 0, count, n;
    struct buffer *buffer;
    unsigned char *mem;
    int status;

    *how = ENTER_AGAIN;
    if (call->rpc_at == 0) {
        call->rpc_buffer = find_rpc_buffer(guest, pair(call->rpc_a1, call->rpc_a2));
        if (call->rpc_buffer != NULL)
            call->rpc_serial = call->rpc_buffer->serial;
    }
    mem = place(call, &room);
    if (mem == NULL)
        return finding(mini, guest, "secure-world: an RPC names an unknown message buffer");
    count = get32(mem + AT_NUM_PARAMS);
    if (count > room) {
        put32(mem + AT_RET, TEE_ERROR_GENERIC);
        return finding(mini, guest, "secure-world: an RPC request has too many parameters");
    }
    call->request = get32(mem + AT_CMD);
    if (call->request == OPTEE_RPC_CMD_SHM_ALLOC) {
        call->shm_type = count != 0 ? get64(mem + MESSAGE_HEADER + AT_A) : 0;
        call->has_empty = 0;
    } else if (call->request == OPTEE_RPC_CMD_SHM_FREE && count != 0) {
        uint64_t reference = get64(mem + MESSAGE_HEADER + AT_B);

        /* Released even if the request cannot be delivered: the TEE has let go. But what came with
         * an answer without memory is given back by a name that may be somebody else's. */
        buffer = find_buffer(guest, reference);
        if (buffer != NULL && buffer->kind == RPC_ALLOCATED && buffer->live &&
            !(call->has_empty && call->empty == reference)) {
            status = release_buffer(mini, guest, buffer, NULL);
            if (status != APP_OK)
                return status;
        }
        call->has_empty = 0;
    }
    for (n = 0; n < count; n++) {
        const unsigned char *param = mem + MESSAGE_HEADER + n * PARAM;

        if (is_temporary(param) && get64(param + AT_A) != 0) {
            put32(mem + AT_RET, TEE_ERROR_GENERIC);
            return finding(mini, guest, "I1: an RPC request holds a physical address");
        }
    }
    whole.length = MESSAGE_HEADER + count * PARAM;
    whole.data = mem;
    status = write_request(mini, guest, call, &whole, 1);
    if (status == APP_OK)
        *how = TO_GUEST;
    else if (status == APP_NO)
        put32(mem + AT_RET, TEE_ERROR_GENERIC);
    return status < 0 ? status : APP_OK;
}

static int to_guest(struct mini *mini, const struct guest *guest, const struct call *call,
                    uint32_t function, uint32_t command)
{
    const struct word words[5] = {
        WORD(guest->id), WORD(call->serial), WORD(call->thread), WORD(function),
        function == OPTEE_SMC_RPC_FUNC_CMD ? WORD(command) : NO_WORD};

    return trace(mini, "RpcToGuest", words, 5, NULL, 0);
}

/* Suspends a call for what the TEE answered. */
int leave(struct mini *mini, struct guest *guest, struct call *call, const uint64_t answer[4],
          enum leaving *how)
{
    uint32_t thread = (uint32_t)(answer[3] & LOW);
    int status = APP_OK;
    size_t n;

    call->rpc_function = (uint32_t)(answer[0] & 0xffff);
    call->rpc_a1 = answer[1];
    call->rpc_a2 = answer[2];
    *how = BROKEN;
    if (thread >= FIRST_OWN_THREAD)
        return finding(mini, guest, "secure-world: a thread id is not free");
    for (n = 0; n < CALLS; n++)
        if (guest->calls[n].used && guest->calls[n].suspended && guest->calls[n].thread == thread)
            return finding(mini, guest, "secure-world: a thread id is not free");
    call->thread = thread;
    *how = TO_GUEST;
    if (call->rpc_function == OPTEE_SMC_RPC_FUNC_CMD) {
        status = request_out(mini, guest, call, how);
    } else if (call->rpc_function == OPTEE_SMC_RPC_FUNC_FREE) {
        uint64_t cookie = pair(answer[1], answer[2]);
        struct rpc_buffer *buffer = find_rpc_buffer(guest, cookie);

        /* Released before the guest can see it: it may use the cookie again at that instant. A
         * refused answer to ALLOC comes back with a cookie that may be another thread's. */
        if (buffer != NULL &&
            (buffer->thread == thread || !call->has_refused || call->refused != cookie))
            status = release_rpc_buffer(mini, guest, buffer);
        call->has_refused = 0;
    }
    call->suspended = status == APP_OK && *how == TO_GUEST;
    if (call->suspended)
        status = to_guest(mini, guest, call, call->rpc_function, call->request);
    return status;
}

/* The guest's page for RPC messages: pins it, and gives the TEE one of ours. pa 0: failed. */
int allocated(struct mini *mini, struct guest *guest, struct call *call, const uint64_t x[8],
              uint64_t *pa)
{
    uint64_t ipa = pair(x[1], x[2]), cookie = pair(x[4], x[5]);
    struct rpc_buffer *buffer = NULL;
    int status;
    size_t n;

    *pa = 0;
    call->has_refused = 1;
    call->refused = cookie;
    for (n = RPC_BUFFERS; n-- != 0;)
        if (!guest->rpc_buffers[n].used)
            buffer = &guest->rpc_buffers[n];
    /* The TEE must not find our page under a name that a message of this guest has in use. */
    if (ipa % APP_PAGE != 0 || ipa == 0 || buffer == NULL ||
        find_rpc_buffer(guest, cookie) != NULL || names(guest, cookie, NULL))
        return APP_OK;
    memset(buffer, 0, sizeof *buffer);
    buffer->serial = ++guest->rpc_serial;
    buffer->cookie = cookie;
    buffer->ipa = ipa;
    buffer->thread = call->thread;
    status = take_page(mini, &buffer->shadow);
    if (status != APP_OK)
        return status < 0 ? status : APP_OK;
    status = app_pin_pages(&mini->app, guest->id, &ipa, 1, &buffer->frame);
    if (status != APP_OK) {
        int given = give_page(mini, &buffer->shadow);

        return status < 0 && status != APP_TOO_MUCH ? status : given;
    }
    buffer->used = 1;
    call->has_refused = 0;
    *pa = buffer->shadow.pa;
    return APP_OK;
}

/* Tells the TEE that its SHM_ALLOC failed: no parameter, a generic error. */
static void failed_allocation(unsigned char *mem)
{
    put32(mem + AT_CMD, OPTEE_RPC_CMD_SHM_FREE);
    put32(mem + AT_RET, TEE_ERROR_GENERIC);
    put32(mem + AT_NUM_PARAMS, 0);
}

/* Asks the guest to free what could not be translated; the TEE learns of the failure after it. */
static int free_again(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
                      unsigned char *mem, uint64_t reference, int *again)
{
    const uint32_t command = OPTEE_RPC_CMD_SHM_FREE, result = TEE_ERROR_GENERIC, one = 1;
    const uint64_t param[3] = {OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, call->shm_type, reference};
    const struct app_segment segments[4] = {
        {AT_CMD, sizeof command, &command},
        {AT_RET, sizeof result, &result},
        {AT_NUM_PARAMS, sizeof one, &one},
        {MESSAGE_HEADER, sizeof param, param},
    };
    int status = write_request(mini, guest, call, segments, 4);

    if (status == APP_NO)
        failed_allocation(mem);
    if (status != APP_OK)
        return status < 0 ? status : APP_OK;
    call->own_free = 1;
    *again = 1;
    x[0] = OPTEE_SMC_RETURN_RPC_CMD;
    x[1] = call->rpc_a1;
    x[2] = call->rpc_a2;
    x[3] = call->thread;
    return to_guest(mini, guest, call, OPTEE_SMC_RPC_FUNC_CMD, OPTEE_RPC_CMD_SHM_FREE);
}

/* The memory that the guest allocated for the TEE: takes it, and makes the answer that the TEE
 * sees. param: the guest's. */
static int take_allocation(struct mini *mini, struct guest *guest, struct call *call,
                           uint64_t x[8], unsigned char *mem, const unsigned char *param,
                           int *again)
{
    const uint64_t attribute = get64(param + AT_ATTR), reference = get64(param + AT_C);
    uint32_t result = TEE_ERROR_BAD_PARAMETERS;
    struct buffer *buffer = NULL;
    int status = APP_OK;

    if ((attribute & OPTEE_MSG_ATTR_NONCONTIG) != 0)
        result = reserve(guest, RPC_ALLOCATED, get64(param + AT_A), get64(param + AT_B), reference,
                         &buffer);
    if (result == 0)
        status = walk(mini, guest, buffer, &result);
    if (status != APP_OK)
        return status;
    if (result != 0) {
        if (buffer != NULL)
            status = release_buffer(mini, guest, buffer, call);
        return status != APP_OK ? status
                                : free_again(mini, guest, call, x, mem, reference, again);
    }
    buffer->live = 1;
    /* The list of the allocation before is not needed any more: the TEE has mapped it. */
    status = give_page(mini, &call->alloc_list);
    call->alloc_list = buffer->list;
    buffer->list.mem = NULL;
    put64(mem + MESSAGE_HEADER + AT_ATTR, attribute | OPTEE_MSG_ATTR_NONCONTIG);
    put64(mem + MESSAGE_HEADER + AT_A, call->alloc_list.pa | buffer->offset);
    return status;
}

/* Takes the guest's answer to an RPC command. again: x is for the guest, who has something more to
 * do; else the TEE's message is ready. */
int answer_in(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8], int *again)
{
    uint32_t room = 0, count, n;
    unsigned char *mem = place(call, &room), *data = mini->page;
    int status;

    *again = 0;
    if (mem == NULL) {
        /* Freed by another thread of the TEE while the guest held the request. */
        call->own_free = 0;
        return APP_OK;
    }
    if (call->own_free) {
        call->own_free = 0;
        failed_allocation(mem);
        return APP_OK;
    }
    if (call->rpc_at != 0)
        status = read_message(mini, guest, call, call->rpc_at, data, MESSAGE_HEADER + room * PARAM);
    else
        status = app_read_guest(&mini->app, guest->id, call->rpc_buffer->ipa, APP_PAGE, data);
    if (status != APP_OK) {
        put32(mem + AT_RET, TEE_ERROR_GENERIC);
        return status < 0 ? status : APP_OK;
    }
    count = get32(data + AT_NUM_PARAMS);
    if (count > room) {
        if (call->rpc_at == 0)
            memcpy(mem, data, MESSAGE_HEADER);
        put32(mem + AT_RET, TEE_ERROR_GENERIC);
        return APP_OK;
    }
    /* Addresses are zeroed in our copy: the guest's must not reach the TEE, whatever happens. */
    memcpy(mem, data, MESSAGE_HEADER);
    for (n = 0; n < count; n++) {
        unsigned char *param = data + MESSAGE_HEADER + n * PARAM;
        unsigned char *copy = mem + MESSAGE_HEADER + n * PARAM;

        memcpy(copy, param, PARAM);
        if (is_temporary(param))
            put64(copy + AT_A, 0);
    }
    if (call->request != OPTEE_RPC_CMD_SHM_ALLOC || count != 1 || get32(data + AT_RET) != 0)
        return APP_OK;
    if (!is_temporary(data + MESSAGE_HEADER))
        return APP_OK;
    if (get64(data + MESSAGE_HEADER + AT_A) == 0) {
        call->has_empty = 1;
        call->empty = get64(data + MESSAGE_HEADER + AT_C);
        return APP_OK;
    }
    if (attribute_type(data + MESSAGE_HEADER) != OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT)
        return APP_OK;
    return take_allocation(mini, guest, call, x, mem, data + MESSAGE_HEADER, again);
}
