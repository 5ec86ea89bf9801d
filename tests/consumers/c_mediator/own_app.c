/* SPDX-License-Identifier: BSD-2-Clause */
/* An app of our own on the client that optee-mediator writes. Without a hypervisor it ends at once, and
 * says why by its exit code: that it is built and linked is what counts here. */
#include "optee_app.h"
#include "optee_numbers.h"

static struct app app;

static int handle_smc(struct app *self, const struct app_handle_smc_in *in,
                      struct app_handle_smc_out *out)
{
    uint64_t copy[64];
    int status = app_read_guest(self, in->guest, in->x[1], sizeof copy, copy);

    if (status == APP_NO) {
        out->x[0] = OPTEE_SMC_RETURN_EBADADDR;
        return APP_OUTCOME_DONE;
    }
    return status == APP_OK ? APP_OUTCOME_NOT_MINE : status;
}

int main(void)
{
    static const struct app_handlers handlers = {.handle_smc = handle_smc};

    return app_start(&app, "own app", &handlers, APP_CAP_NESTING) == APP_NO_ARENA ? 3 : 0;
}
