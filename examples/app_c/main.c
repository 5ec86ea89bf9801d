/* SPDX-License-Identifier: BSD-2-Clause */
/* The entries of the app: probe, guests, and which call goes where. */
#include <string.h>

#include "mini.h"

static struct mini mini;

#define OFFERED                                                                        \
    (OPTEE_SMC_SEC_CAP_UNREGISTERED_SHM | OPTEE_SMC_SEC_CAP_DYNAMIC_SHM |              \
     OPTEE_SMC_SEC_CAP_MEMREF_NULL | OPTEE_SMC_SEC_CAP_RPC_ARG)
#define CALLS_COUNT 14 /* functions in handle_smc() */
#define RPC_PARAMS_MASK 0xff
#define DEFAULT_RPC_PARAMS 4
#define LAST_CLIENT 0xffff /* OP-TEE looks at 16 bits */

/* A fast call for a guest; null: the hypervisor's own. */
static int smc(uint64_t function, uint64_t a1, const struct guest *guest, uint64_t answer[4])
{
    const uint64_t x[8] = {function, a1, 0, 0, 0, 0, 0, guest == NULL ? 0 : guest->client};
    const struct word words[3] = {guest == NULL ? NO_WORD : WORD(guest->id), NO_WORD, NO_WORD};
    int status = trace(&mini, "Forwarded", words, 3, x, 8);

    if (status == APP_OK)
        status = app_smc(&mini.app, x, answer);
    if (status == APP_OK)
        status = trace(&mini, "Answered", words, 3, answer, 4);
    return status;
}

static struct guest *find_guest(uint64_t id)
{
    size_t n;

    for (n = 0; n < GUESTS; n++)
        if (mini.guests[n].used && mini.guests[n].id == id)
            return &mini.guests[n];
    return NULL;
}

/* --- the TEE --------------------------------------------------------------------------------- */

static int no_tee(struct app_init_out *out, const char *why)
{
    out->payload = why;
    out->length = strlen(why);
    return APP_OUTCOME_REFUSED;
}

static int init(struct app *app, const struct app_init_in *in, struct app_init_out *out)
{
    static const uint64_t ranges[2][2] = {{0x32000000, 0x3fffffff}, {0xb2000000, 0xbfffffff}};
    uint64_t answer[4];
    int status;
    size_t n;

    out->threads = in->threads;
    if (in->mode != 1) {
        for (n = 0; n < 2; n++) {
            status = app_register_hook(app, APP_HOOK_SMC, ranges[n][0], ranges[n][1]);
            if (status != APP_OK)
                return status;
        }
        return APP_OUTCOME_DONE;
    }
    status = smc(OPTEE_SMC_CALLS_UID, 0, NULL, answer);
    if (status != APP_OK)
        return status;
    if ((answer[0] & LOW) != OPTEE_MSG_UID_0 || (answer[1] & LOW) != OPTEE_MSG_UID_1 ||
        (answer[2] & LOW) != OPTEE_MSG_UID_2 || (answer[3] & LOW) != OPTEE_MSG_UID_3)
        return no_tee(out, "CALLS_UID is not OP-TEE's");
    status = smc(OPTEE_SMC_GET_THREAD_COUNT, 0, NULL, answer);
    if (status != APP_OK)
        return status;
    if (answer[0] != OPTEE_SMC_RETURN_OK)
        return no_tee(out, "GET_THREAD_COUNT was refused");
    out->threads = answer[1] & LOW;
    /* Destroying the hypervisor's own id does no harm; without virtualization it is unknown. */
    status = smc(OPTEE_SMC_VM_DESTROYED, 0, NULL, answer);
    if (status != APP_OK)
        return status;
    if (answer[0] == OPTEE_SMC_RETURN_UNKNOWN_FUNCTION)
        return no_tee(out, "this OP-TEE is built without virtualization");
    return APP_OUTCOME_DONE;
}

/* --- guests ---------------------------------------------------------------------------------- */

static int guest_created(struct app *app, const struct app_guest_created_in *in)
{
    struct guest *guest = NULL;
    uint64_t answer[4];
    size_t n;
    int status;

    (void)app;
    for (n = GUESTS; n-- != 0;)
        if (!mini.guests[n].used)
            guest = &mini.guests[n];
    if (guest == NULL || find_guest(in->guest) != NULL || in->client == 0 ||
        in->client > LAST_CLIENT)
        return APP_OUTCOME_REFUSED;
    status = smc(OPTEE_SMC_VM_CREATED, in->client, NULL, answer);
    if (status != APP_OK)
        return status;
    if ((answer[0] & LOW) != OPTEE_SMC_RETURN_OK)
        return APP_OUTCOME_REFUSED;
    memset(guest, 0, sizeof *guest);
    guest->used = 1;
    guest->id = in->guest;
    guest->client = in->client;
    guest->rpc_params = DEFAULT_RPC_PARAMS;
    return APP_OUTCOME_DONE;
}

static int asked_to_stop(int *status)
{
    uint64_t preempt = 0;

    *status = app_should_preempt(&mini.app, &preempt);
    return *status != APP_OK || preempt != 0;
}

/* In a fixed order, and in steps between which it may be stopped: calls, RPC buffers, buffers that
 * have a name, those that lingered. The TEE is told last. */
static int guest_destroyed(struct app *app, const struct app_guest_destroyed_in *in)
{
    struct guest *guest = find_guest(in->guest);
    struct word words[2];
    uint64_t answer[4];
    int status = APP_OK, pass;
    size_t n;

    if (guest == NULL)
        return APP_OUTCOME_DONE;
    guest->dying = 1;
    for (n = 0; n < CALLS && status == APP_OK; n++) {
        struct call *call = &guest->calls[n];

        if (call->used) {
            call->walk = NULL;
            call->buffer_count = call->named_count = 0;
            status = drop_call(&mini, guest, call);
        }
    }
    if (status != APP_OK)
        return status;
    if (asked_to_stop(&status))
        return status < 0 ? status : APP_OUTCOME_PREEMPTED;
    for (n = 0; n < RPC_BUFFERS && status == APP_OK; n++)
        if (guest->rpc_buffers[n].used)
            status = release_rpc_buffer(&mini, guest, &guest->rpc_buffers[n]);
    if (status != APP_OK)
        return status;
    for (pass = 0; pass < 2; pass++) {
        for (n = 0; n < BUFFERS; n++) {
            struct buffer *buffer = &guest->buffers[n];

            if (!buffer->used || (pass == 0 && !buffer->named))
                continue;
            if (asked_to_stop(&status))
                return status < 0 ? status : APP_OUTCOME_PREEMPTED;
            status = let_go(&mini, guest, buffer);
            if (status != APP_OK)
                return status;
        }
    }
    if (asked_to_stop(&status))
        return status < 0 ? status : APP_OUTCOME_PREEMPTED;
    status = smc(OPTEE_SMC_VM_DESTROYED, guest->client, NULL, answer);
    if (status != APP_OK)
        return status;
    guest->used = 0;
    if ((answer[0] & LOW) != OPTEE_SMC_RETURN_OK) {
        status = app_quarantine(app, guest->id, answer[0]);
        if (status != APP_OK)
            return status;
    }
    words[0] = WORD(in->guest);
    words[1] = WORD(answer[0]);
    status = trace(&mini, "GuestTornDown", words, 2, NULL, 0);
    return status == APP_OK ? APP_OUTCOME_DONE : status;
}

/* --- calls ----------------------------------------------------------------------------------- */

/* A question that the TEE answers; the first count registers are its answer. */
static int forward(struct guest *guest, uint64_t x[8], size_t count)
{
    uint64_t answer[4];
    int status = smc(x[0] & LOW, 0, guest, answer);

    if (status == APP_OK)
        memcpy(x, answer, count * sizeof x[0]);
    return status;
}

static int exchange_capabilities(struct guest *guest, uint64_t x[8])
{
    uint64_t answer[4], offered;
    int status = smc(OPTEE_SMC_EXCHANGE_CAPABILITIES, x[1] & OPTEE_SMC_NSEC_CAP_UNIPROCESSOR,
                     guest, answer);

    if (status != APP_OK)
        return status;
    x[0] = answer[0];
    if ((answer[0] & LOW) != OPTEE_SMC_RETURN_OK)
        return APP_OK;
    offered = answer[1] & OFFERED;
    if ((offered & OPTEE_SMC_SEC_CAP_DYNAMIC_SHM) == 0) {
        /* Without it the guest would want the reserved memory, which it cannot have. */
        x[0] = OPTEE_SMC_RETURN_ENOTAVAIL;
        return APP_OK;
    }
    x[1] = offered;
    if ((offered & OPTEE_SMC_SEC_CAP_RPC_ARG) != 0) {
        x[3] = answer[3];
        guest->rpc_params = (uint32_t)(answer[3] & RPC_PARAMS_MASK);
    }
    return APP_OK;
}

static int thread_count(struct guest *guest, uint64_t x[8])
{
    uint64_t answer[4];
    int status = smc(OPTEE_SMC_GET_THREAD_COUNT, 0, guest, answer);

    if (status != APP_OK)
        return status;
    x[0] = answer[0];
    if ((answer[0] & LOW) == OPTEE_SMC_RETURN_OK)
        x[1] = (answer[1] & LOW) < CALLS ? answer[1] & LOW : CALLS;
    return APP_OK;
}

/* One RPC buffer that the TEE kept comes back; it is unpinned before the guest knows. */
static int disable_shm_cache(struct guest *guest, uint64_t x[8])
{
    uint64_t answer[4];
    struct rpc_buffer *buffer;
    int status = smc(OPTEE_SMC_DISABLE_SHM_CACHE, 0, guest, answer);

    if (status != APP_OK)
        return status;
    x[0] = answer[0];
    if ((answer[0] & LOW) != OPTEE_SMC_RETURN_OK)
        return APP_OK;
    buffer = find_rpc_buffer(guest, pair(answer[1], answer[2]));
    if (buffer != NULL)
        status = release_rpc_buffer(&mini, guest, buffer);
    x[1] = answer[1];
    x[2] = answer[2];
    return status;
}

static int handle_smc(struct app *app, const struct app_handle_smc_in *in,
                      struct app_handle_smc_out *out)
{
    struct guest *guest = find_guest(in->guest);
    int status = APP_OK;

    (void)app;
    if (guest == NULL || guest->dying)
        return APP_OUTCOME_NOT_MINE;
    mini.vcpu = in->vcpu;
    memcpy(out->x, in->x, sizeof out->x);
    switch (in->x[0] & LOW) {
    case OPTEE_SMC_CALLS_COUNT:
        out->x[0] = CALLS_COUNT;
        break;
    case OPTEE_SMC_CALLS_UID:
    case OPTEE_SMC_CALL_GET_OS_UUID:
        status = forward(guest, out->x, 4);
        break;
    case OPTEE_SMC_CALLS_REVISION:
        status = forward(guest, out->x, 2);
        break;
    case OPTEE_SMC_CALL_GET_OS_REVISION:
        status = forward(guest, out->x, 3);
        break;
    case OPTEE_SMC_GET_SHM_CONFIG:
        out->x[0] = OPTEE_SMC_RETURN_ENOTAVAIL;
        break;
    case OPTEE_SMC_EXCHANGE_CAPABILITIES:
        status = exchange_capabilities(guest, out->x);
        break;
    case OPTEE_SMC_GET_THREAD_COUNT:
        status = thread_count(guest, out->x);
        break;
    case OPTEE_SMC_ENABLE_SHM_CACHE:
        status = forward(guest, out->x, 1);
        break;
    case OPTEE_SMC_DISABLE_SHM_CACHE:
        status = disable_shm_cache(guest, out->x);
        break;
    case OPTEE_SMC_CALL_WITH_ARG:
    case OPTEE_SMC_CALL_WITH_RPC_ARG:
        status = call_by_address(&mini, guest, out->x, (uint32_t)(in->x[0] & LOW));
        break;
    case OPTEE_SMC_CALL_WITH_REGD_ARG:
        status = call_by_cookie(&mini, guest, out->x);
        break;
    case OPTEE_SMC_CALL_RETURN_FROM_RPC:
        status = return_from_rpc(&mini, guest, out->x);
        break;
    default:
        return APP_OUTCOME_NOT_MINE;
    }
    return status == APP_OK ? APP_OUTCOME_DONE : status;
}

int main(void)
{
    static const struct app_handlers handlers = {
        .init = init,
        .guest_created = guest_created,
        .guest_destroyed = guest_destroyed,
        .handle_smc = handle_smc,
    };
    int status = app_start(&mini.app, "mini-mediator", &handlers, APP_CAP_TRACE);

    if (status == APP_OK)
        status = app_run(&mini.app);
    return status == APP_OK ? 0 : 1;
}
