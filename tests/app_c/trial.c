/* SPDX-License-Identifier: BSD-2-Clause */
/* An app that tries what is forbidden, once for each trap: x1 says what. x0 is then 0 if it worked, else
 * the error number. x1 above those: misbehaves. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "optee_app.h"
#include "optee_numbers.h"

static struct app app;
static uint64_t clients[8]; /* of guests 0 to 7 */

static long try(uint64_t what, uint64_t parent)
{
    static char byte;
    struct iovec here = {&byte, 1}, there = {&byte, 1};
    char *const nothing[] = {NULL};

    switch (what) {
    case 0:
        return syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    case 1:
        return socket(AF_UNIX, SOCK_STREAM, 0);
    case 2:
        return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    case 3:
        return execve("/bin/true", nothing, nothing);
    case 4:
        return ptrace(PTRACE_ATTACH, (pid_t)parent, NULL, NULL);
    case 5:
        return process_vm_readv((pid_t)parent, &here, 1, &there, 1, 0);
    case 6:
        return kill((pid_t)parent, 0);
    case 7:
        return (long)write(2, "x", 1);
    case 8:
        return (long)read(1, &byte, 1);
    case 9:
        return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
                       MAP_FAILED
                   ? -1
                   : 0;
    case 10:
        return mmap(NULL, 4096, PROT_READ, MAP_SHARED, 0, 0) == MAP_FAILED ? -1 : 0;
    case 11:
        return dup(0);
    case 12:
        return syscall(SYS_prctl, 38, 0, 0, 0, 0);
    case 13:
        return syscall(SYS_memfd_create, "x", 0);
    case 14:
        return syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, NULL);
    case 15:
        return syscall(SYS_io_uring_setup, 1, NULL);
    case 16:
        return syscall(SYS_getpid);
    default:
        return 0;
    }
}

static void misbehave(uint64_t what)
{
    static const unsigned char noise[4096] = {0xff, 0xff, 0xff, 0xff};
    static const uint64_t frames[4] = {0x1000, 0xdeadb000, 0, UINT64_MAX};
    volatile uint64_t forever = 1;
    volatile int *nowhere = (volatile int *)(uintptr_t)forever;
    ssize_t done = 0;

    switch (what) {
    case 100:
        *nowhere = 1;
        break;
    case 101:
        _exit(7);
    case 102:
        while (forever != 0)
            forever++;
        break;
    case 103:
        do
            done = write(APP_SINK_FD, noise, sizeof noise);
        while (done > 0);
        break;
    case 104:
        app_panic(&app, "on purpose", 10);
    case 105:
        (void)app_unpin_pages(&app, 1, frames, 4);
        break;
    case 106:
        memset(app.arena, 0xa5, app.arena_bytes);
        break;
    case 107:
        done = write(APP_SINK_FD, noise, 5);
        _exit(done == 5 ? 0 : 1);
    case 108:
        app.entry ^= 0x5a5a;
        break;
    default:
        break;
    }
}

static int handle_smc(struct app *unused, const struct app_handle_smc_in *in,
                      struct app_handle_smc_out *out)
{
    (void)unused;
    memcpy(out->x, in->x, sizeof out->x);
    if (in->x[1] >= 100) {
        misbehave(in->x[1]);
        return APP_OUTCOME_DONE;
    }
    errno = 0;
    out->x[0] = try(in->x[1], in->x[2]) < 0 ? (uint64_t)errno : 0;
    return APP_OUTCOME_DONE;
}

static int init(struct app *unused, const struct app_init_in *in, struct app_init_out *out)
{
    (void)unused;
    out->threads = 2;
    if (in->mode == 1)
        return APP_OUTCOME_DONE;
    return app_register_hook(&app, APP_HOOK_SMC, 0x32000000, 0x3fffffff);
}

static int tell_tee(uint64_t function, uint64_t client)
{
    const uint64_t x[8] = {function, client};
    uint64_t answer[4];

    return app_smc(&app, x, answer);
}

static int guest_created(struct app *unused, const struct app_guest_created_in *in)
{
    (void)unused;
    clients[in->guest % 8] = in->client;
    return tell_tee(OPTEE_SMC_VM_CREATED, in->client);
}

static int guest_destroyed(struct app *unused, const struct app_guest_destroyed_in *in)
{
    (void)unused;
    return tell_tee(OPTEE_SMC_VM_DESTROYED, clients[in->guest % 8]);
}

int main(void)
{
    static const struct app_handlers handlers = {
        .init = init,
        .guest_created = guest_created,
        .guest_destroyed = guest_destroyed,
        .handle_smc = handle_smc,
    };

    return app_start(&app, "trial", &handlers, 0) == APP_OK && app_run(&app) == APP_OK ? 0 : 1;
}
