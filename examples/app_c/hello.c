/* SPDX-License-Identifier: BSD-2-Clause */
/* The smallest app that is of use: guests may ask who the TEE is, and nothing else. */
#include <string.h>

#include "optee_app.h"
#include "optee_numbers.h"

static struct app app;
static uint64_t clients[16]; /* client ids of guests 0 to 15, 0: unknown */

static int init(struct app *self, const struct app_init_in *in, struct app_init_out *out)
{
    out->threads = 1;
    if (in->mode == 1) /* look for the TEE: we take any */
        return APP_OUTCOME_DONE;
    return app_register_hook(self, APP_HOOK_SMC, 0xbf000000, 0xbfffffff);
}

/* The TEE learns of a guest, or that it is gone: calls of the hypervisor itself, client 0. */
static int tell(struct app *self, uint64_t function, uint64_t client)
{
    const uint64_t x[8] = {function, client};
    uint64_t answer[4];
    int status = app_smc(self, x, answer);

    if (status != APP_OK)
        return status;
    return answer[0] == OPTEE_SMC_RETURN_OK ? APP_OUTCOME_DONE : APP_OUTCOME_REFUSED;
}

static int guest_created(struct app *self, const struct app_guest_created_in *in)
{
    if (in->guest >= 16)
        return APP_OUTCOME_REFUSED;
    clients[in->guest] = in->client;
    return tell(self, OPTEE_SMC_VM_CREATED, in->client);
}

static int guest_destroyed(struct app *self, const struct app_guest_destroyed_in *in)
{
    int status = tell(self, OPTEE_SMC_VM_DESTROYED, clients[in->guest % 16]);

    return status < 0 ? status : APP_OUTCOME_DONE;
}

static int handle_smc(struct app *self, const struct app_handle_smc_in *in,
                      struct app_handle_smc_out *out)
{
    static const char what[] = "asks who the TEE is";
    const uint64_t x[8] = {OPTEE_SMC_CALLS_UID, 0, 0, 0, 0, 0, 0, clients[in->guest % 16]};
    int status;

    if ((uint32_t)in->x[0] != OPTEE_SMC_CALLS_UID)
        return APP_OUTCOME_NOT_MINE;
    memcpy(out->x, in->x, sizeof out->x);
    status = app_smc(self, x, out->x); /* x0 to x3 are the answer */
    if (status == APP_OK)
        status = app_log(self, in->guest, what, sizeof what - 1);
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

    if (app_start(&app, "hello", &handlers, 0) != APP_OK)
        return 1;
    return app_run(&app) == APP_OK ? 0 : 1;
}
