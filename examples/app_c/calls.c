/* SPDX-License-Identifier: BSD-2-Clause */
/* The life of a yielding call: limit, one snapshot of the message, checks, shadow, translation, the
 * TEE, RPC rounds, results back, release. */
#include <string.h>

#include "mini.h"

static struct call *begin(struct guest *guest, uint32_t function)
{
    size_t n;

    for (n = 0; n < CALLS; n++) {
        struct call *call = &guest->calls[n];

        if (!call->used) {
            memset(call, 0, sizeof *call);
            call->used = 1;
            call->serial = ++guest->call_serial;
            call->function = function;
            return call;
        }
    }
    return NULL;
}

static int refuse(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
                  uint64_t status)
{
    const struct word words[4] = {WORD(guest->id), WORD(call->serial), NO_WORD, WORD(status)};
    int dropped = drop_call(mini, guest, call);

    x[0] = status;
    if (dropped == APP_OK && call->told)
        dropped = trace(mini, "CallEnded", words, 4, NULL, 0);
    return dropped;
}

/* Ends a call without the TEE: result with origin COMMS in the message, x0 = OK. */
static int fail(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
                uint32_t result)
{
    const uint32_t pair_of[2] = {result, TEE_ORIGIN_COMMS};
    const struct app_segment segment = {AT_RET, sizeof pair_of, pair_of};
    int status = release_buffers(mini, guest, call);

    if (status != APP_OK)
        return status;
    status = write_message(mini, guest, call, 0, &segment, 1);
    if (status < 0)
        return status;
    return refuse(mini, guest, call, x,
                  status == APP_OK ? OPTEE_SMC_RETURN_OK : OPTEE_SMC_RETURN_EBADADDR);
}

/* The result fields of what the guest asked, whatever the TEE made of the attributes. */
static size_t results(const struct call *call, const unsigned char *mem,
                      struct app_segment *segments)
{
    uint32_t at;
    size_t count = 0;

    segments[count++] = (struct app_segment){AT_SESSION, 4, mem + AT_SESSION};
    segments[count++] = (struct app_segment){AT_RET, 8, mem + AT_RET};
    for (at = MESSAGE_HEADER; at < call->size; at += PARAM) {
        switch (call->types[(at - MESSAGE_HEADER) / PARAM]) {
        case OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT:
        case OPTEE_MSG_ATTR_TYPE_VALUE_INOUT:
            segments[count++] = (struct app_segment){at + AT_A, 24, mem + at + AT_A};
            break;
        case OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT:
        case OPTEE_MSG_ATTR_TYPE_RMEM_INOUT:
        case OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT:
        case OPTEE_MSG_ATTR_TYPE_TMEM_INOUT:
            segments[count++] = (struct app_segment){at + AT_B, 8, mem + at + AT_B};
            break;
        default:
            break;
        }
    }
    return count;
}

/* The TEE accepted UNREGISTER: it let go of what has the name now. */
static int unregistered(struct mini *mini, struct guest *guest, uint64_t reference)
{
    struct buffer *buffer = find_buffer(guest, reference);

    if (buffer == NULL)
        return APP_OK;
    if (buffer->live)
        return release_buffer(mini, guest, buffer, NULL);
    if (buffer->kind == REGISTERED && buffer->given)
        buffer->doomed = 1; /* its own REGISTER has not come back, and will find it gone */
    return APP_OK;
}

static int registered(struct mini *mini, struct guest *guest, struct call *call)
{
    uint32_t n, count = call->buffer_count;
    int status = APP_OK;

    call->buffer_count = 0;
    for (n = 0; n < count && status == APP_OK; n++) {
        struct buffer *buffer = call->buffers[n];

        if (buffer->doomed) {
            status = release_buffer(mini, guest, buffer, NULL);
        } else {
            buffer->live = 1;
            status = give_page(mini, &buffer->list);
        }
    }
    return status;
}

/* The TEE is done: names and pins first, then the results, then the call itself. Once the guest
 * sees the results it may use the names again. */
static int end(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
               uint64_t answer)
{
    struct app_segment segments[MAX_PARAMS + 2];
    unsigned char *copy = mini->page; /* one snapshot of what the TEE wrote */
    int accepted, status = APP_OK, written, released;
    struct word words[4];
    size_t count;

    memcpy(copy, call->shadow.mem, call->size);
    accepted = (answer & LOW) == OPTEE_SMC_RETURN_OK && get32(copy + AT_RET) == 0;
    if (call->has_target && accepted)
        status = unregistered(mini, guest, call->target);
    if (status == APP_OK && call->command == OPTEE_MSG_CMD_REGISTER_SHM && accepted)
        status = registered(mini, guest, call);
    else if (status == APP_OK)
        status = release_buffers(mini, guest, call);
    if (status != APP_OK)
        return status;
    count = results(call, copy, segments);
    /* With the return of the entry, where nobody records: a recorder is told what became of it. */
    if (call->carrier == NULL && (mini->app.offers & APP_OFFER_FUSED) != 0 && !recorded(mini))
        written = app_write_result(&mini->app, guest->id, call->page, OPTEE_SMC_RETURN_EBADADDR,
                                   segments, count);
    else
        written = write_message(mini, guest, call, 0, segments, count);
    if (written < 0)
        return written;
    x[0] = written == APP_OK ? answer : OPTEE_SMC_RETURN_EBADADDR;
    words[0] = WORD(guest->id);
    words[1] = WORD(call->serial);
    words[2] = WORD(mini->vcpu);
    words[3] = WORD(x[0]);
    released = release_call(mini, guest, call);
    return released == APP_OK ? trace(mini, "CallEnded", words, 4, NULL, 0) : released;
}

/* Enters the TEE with a call, until it ends or the guest is needed. */
static int enter(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
                 const uint64_t sent[6])
{
    const struct word words[3] = {WORD(guest->id), WORD(call->serial), WORD(mini->vcpu)};
    uint64_t a[8] = {0}, answer[4];
    int rounds, status;
    enum leaving how;

    memcpy(a, sent, 6 * sizeof a[0]);
    a[7] = guest->client;
    for (rounds = 0; rounds < REFUSED_REQUESTS; rounds++) {
        status = trace(mini, "Forwarded", words, 3, a, 8);
        if (status == APP_OK)
            status = app_smc(&mini->app, a, answer);
        if (status == APP_OK)
            status = trace(mini, "Answered", words, 3, answer, 4);
        if (status != APP_OK)
            return status;
        if ((answer[0] & LOW) < OPTEE_SMC_RETURN_RPC_PREFIX ||
            (answer[0] & LOW) == OPTEE_SMC_RETURN_UNKNOWN_FUNCTION)
            return end(mini, guest, call, x, answer[0]);
        status = leave(mini, guest, call, answer, &how);
        if (status != APP_OK)
            return status;
        if (how == TO_GUEST) {
            memcpy(x, answer, sizeof answer);
            return APP_OK;
        }
        if (how == BROKEN) {
            /* Some thread of the TEE may have the buffers still: they stay until the guest ends. */
            call->walk = NULL;
            call->buffer_count = 0;
            return fail(mini, guest, call, x, TEE_ERROR_COMMUNICATION);
        }
        memset(a, 0, 6 * sizeof a[0]);
        a[0] = OPTEE_SMC_CALL_RETURN_FROM_RPC;
        a[3] = call->thread;
    }
    /* Its thread holds all that it was given: the call goes on another time. */
    call->rpc_function = OPTEE_SMC_RPC_FUNC_FOREIGN_INTR;
    call->rpc_a1 = call->rpc_a2 = 0;
    call->suspended = 1;
    x[0] = OPTEE_SMC_RETURN_RPC_FOREIGN_INTR;
    x[1] = x[2] = 0;
    x[3] = call->thread;
    return APP_OK;
}

/* Takes and pins the temporary buffers of the message, which is read from our copy. */
static int translate(struct mini *mini, struct guest *guest, struct call *call, uint32_t *result)
{
    enum kind kind = call->command == OPTEE_MSG_CMD_REGISTER_SHM ? REGISTERED : TEMPORARY;
    uint32_t at, n;
    int status;

    *result = 0;
    for (at = MESSAGE_HEADER; at < call->size; at += PARAM) {
        unsigned char *param = call->shadow.mem + at;
        uint32_t type = get32(param + AT_ATTR) & OPTEE_MSG_ATTR_TYPE_MASK;
        uint64_t attribute = get64(param + AT_ATTR);

        if (type < OPTEE_MSG_ATTR_TYPE_TMEM_INPUT || type > OPTEE_MSG_ATTR_TYPE_TMEM_INOUT ||
            get64(param + AT_A) == 0)
            continue;
        *result = TEE_ERROR_BAD_PARAMETERS;
        if ((attribute & OPTEE_MSG_ATTR_NONCONTIG) == 0)
            return APP_OK;
        *result = reserve(guest, kind, get64(param + AT_A), get64(param + AT_B),
                          get64(param + AT_C), &call->walk);
        if (*result != 0)
            return APP_OK;
        status = walk(mini, guest, call->walk, result);
        if (status != APP_OK || *result != 0)
            return status;
        put64(param + AT_A, call->walk->list.pa | call->walk->offset);
        call->buffers[call->buffer_count++] = call->walk;
        call->walk = NULL;
    }
    for (n = 0; n < call->buffer_count; n++)
        call->buffers[n]->given = 1;
    return APP_OK;
}

/* Notes the registered memory that the message names. 0 if it is a name that the TEE knows as one
 * of our own pages. */
static int note_names(struct guest *guest, struct call *call)
{
    uint32_t at, n;

    if (call->command > OPTEE_MSG_CMD_INVOKE_COMMAND)
        return 1;
    for (at = MESSAGE_HEADER; at < call->size; at += PARAM) {
        const unsigned char *param = call->shadow.mem + at;
        uint32_t type = get32(param + AT_ATTR) & OPTEE_MSG_ATTR_TYPE_MASK;
        uint64_t reference = get64(param + AT_C);

        if (type >= OPTEE_MSG_ATTR_TYPE_RMEM_INPUT && type <= OPTEE_MSG_ATTR_TYPE_RMEM_INOUT &&
            reference != 0)
            call->named[call->named_count++] = reference;
    }
    for (n = 0; n < call->named_count; n++)
        if (find_rpc_buffer(guest, call->named[n]) != NULL)
            return 0;
    return 1;
}

static int tell_start(struct mini *mini, const struct guest *guest, struct call *call)
{
    const struct word words[5] = {WORD(guest->id), WORD(call->serial), WORD(mini->vcpu),
                                  WORD(call->function), WORD(call->command)};

    call->told = 1;
    return trace(mini, "CallStarted", words, 5, NULL, 0);
}

/* From the first have bytes of the message, in the one snapshot, to the TEE. room: bytes from the
 * message to the end of what it lies in. */
static int start(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
                 uint32_t have, uint64_t room)
{
    unsigned char *page = mini->page;
    uint32_t count = get32(page + AT_NUM_PARAMS), result, n;
    uint64_t sent[6] = {0};
    int status;

    if (count > MAX_PARAMS)
        return fail(mini, guest, call, x, TEE_ERROR_BAD_PARAMETERS);
    call->size = MESSAGE_HEADER + count * PARAM;
    if (call->function == OPTEE_SMC_CALL_WITH_RPC_ARG) {
        uint32_t behind = call->size + MESSAGE_HEADER + guest->rpc_params * PARAM;

        call->rpc_at = call->size;
        call->rpc_room = guest->rpc_params;
        if (behind > room || behind > APP_PAGE)
            return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_EBADADDR);
    }
    if (call->size > have) {
        status = read_message(mini, guest, call, have, page + have, call->size - have);
        if (status != APP_OK)
            return status < 0 ? status : APP_GARBLED;
    }
    call->command = get32(page + AT_CMD);
    if (call->command > OPTEE_MSG_CMD_UNREGISTER_SHM)
        return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_EBADCMD);
    memcpy(call->shadow.mem, page, call->size);
    for (n = 0; n < count; n++)
        call->types[n] = page[MESSAGE_HEADER + n * PARAM];
    status = tell_start(mini, guest, call);
    if (status != APP_OK)
        return status;
    call->has_target = call->command == OPTEE_MSG_CMD_UNREGISTER_SHM && count != 0;
    if (call->has_target)
        call->target = get64(page + MESSAGE_HEADER + AT_C);
    if (!note_names(guest, call))
        return fail(mini, guest, call, x, TEE_ERROR_BAD_PARAMETERS);
    status = translate(mini, guest, call, &result);
    if (status != APP_OK)
        return status;
    if (result != 0)
        return fail(mini, guest, call, x, result);
    sent[0] = call->function;
    sent[1] = call->shadow.pa >> 32;
    sent[2] = call->shadow.pa & LOW;
    sent[3] = 1;
    return enter(mini, guest, call, x, sent);
}

/* What a call holds is given back also where the hypervisor's service failed. */
static int settle(struct mini *mini, struct guest *guest, struct call *call, int status)
{
    if (status != APP_OK && call->used)
        (void)drop_call(mini, guest, call);
    return status;
}

static int begin_by_address(struct mini *mini, struct guest *guest, struct call *call,
                            uint64_t x[8])
{
    int status;

    call->page = pair(x[1], x[2]);
    if (call->page % APP_PAGE != 0)
        return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_EBADADDR);
    status = take_page(mini, &call->shadow);
    if (status == APP_NO)
        return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_ENOMEM);
    if (status != APP_OK)
        return status;
    status = app_read_guest(&mini->app, guest->id, call->page, APP_PAGE, mini->page);
    if (status == APP_NO)
        return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_EBADADDR);
    if (status != APP_OK)
        return status;
    return start(mini, guest, call, x, APP_PAGE, APP_PAGE);
}

/* CALL_WITH_ARG and CALL_WITH_RPC_ARG. */
int call_by_address(struct mini *mini, struct guest *guest, uint64_t x[8], uint32_t function)
{
    struct call *call = begin(guest, function);

    if (call == NULL) {
        x[0] = OPTEE_SMC_RETURN_ETHREAD_LIMIT;
        return APP_OK;
    }
    return settle(mini, guest, call, begin_by_address(mini, guest, call, x));
}

static int begin_by_cookie(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8])
{
    uint64_t room = (uint64_t)call->carrier->pages * APP_PAGE - call->carrier->offset -
                    call->position;
    uint32_t have = APP_PAGE - (call->carrier->offset + call->position) % APP_PAGE;
    int status = take_page(mini, &call->shadow);

    if (status == APP_NO)
        return refuse(mini, guest, call, x, OPTEE_SMC_RETURN_ENOMEM);
    if (status != APP_OK)
        return status;
    if (have > FIRST_READ)
        have = FIRST_READ;
    if (have < MESSAGE_HEADER)
        have = MESSAGE_HEADER;
    status = read_message(mini, guest, call, 0, mini->page, have);
    if (status != APP_OK)
        return status;
    return start(mini, guest, call, x, have, room);
}

/* CALL_WITH_REGD_ARG: forwarded as CALL_WITH_RPC_ARG on our copy; forwarded as itself, the TEE
 * would read memory that the guest can change meanwhile. */
int call_by_cookie(struct mini *mini, struct guest *guest, uint64_t x[8])
{
    struct buffer *carrier = find_buffer(guest, pair(x[1], x[2]));
    uint64_t position = x[3] & LOW;
    struct call *call;
    size_t n, busy = 0;

    for (n = 0; n < CALLS; n++)
        busy += guest->calls[n].used != 0;
    if (busy == CALLS) {
        x[0] = OPTEE_SMC_RETURN_ETHREAD_LIMIT;
        return APP_OK;
    }
    if (carrier == NULL || !carrier->live || carrier->kind != REGISTERED || position % 8 != 0 ||
        position + MESSAGE_HEADER > (uint64_t)carrier->pages * APP_PAGE - carrier->offset) {
        x[0] = OPTEE_SMC_RETURN_EBADADDR;
        return APP_OK;
    }
    call = begin(guest, OPTEE_SMC_CALL_WITH_RPC_ARG);
    call->carrier = carrier;
    call->position = (uint32_t)position;
    carrier->users++;
    return settle(mini, guest, call, begin_by_cookie(mini, guest, call, x));
}

static int resume(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8])
{
    uint64_t sent[6] = {OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, call->thread, 0, 0};
    int status, again;

    if (call->rpc_function == OPTEE_SMC_RPC_FUNC_CMD) {
        status = answer_in(mini, guest, call, x, &again);
        if (status != APP_OK || again)
            return status;
    } else if (call->rpc_function == OPTEE_SMC_RPC_FUNC_ALLOC) {
        uint64_t pa;

        status = allocated(mini, guest, call, x, &pa);
        if (status != APP_OK)
            return status;
        sent[1] = pa >> 32;
        sent[2] = pa & LOW;
        sent[4] = x[4];
        sent[5] = x[5];
    } else {
        sent[1] = call->rpc_a1;
        sent[2] = call->rpc_a2;
    }
    call->suspended = 0;
    return enter(mini, guest, call, x, sent);
}

/* Finds the suspended call of x3 and goes on as its record says. */
int return_from_rpc(struct mini *mini, struct guest *guest, uint64_t x[8])
{
    uint32_t thread = (uint32_t)(x[3] & LOW);
    size_t n;

    for (n = 0; n < CALLS; n++) {
        struct call *call = &guest->calls[n];

        if (call->used && call->suspended && call->thread == thread) {
            const struct word words[4] = {WORD(guest->id), WORD(call->serial), WORD(thread),
                                          WORD(mini->vcpu)};
            int status = trace(mini, "RpcAnswered", words, 4, NULL, 0);

            if (status == APP_OK)
                status = resume(mini, guest, call, x);
            return settle(mini, guest, call, status);
        }
    }
    x[0] = OPTEE_SMC_RETURN_ERESUME;
    return APP_OK;
}
