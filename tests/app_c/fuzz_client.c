/* SPDX-License-Identifier: BSD-2-Clause */
/* The client against a hypervisor that says anything. The client is compiled into this program with the
 * system calls replaced: what it reads comes from a generator that knows the last thing it wrote, so
 * that most messages are nearly right. Buffers are exactly as long as the ABI promises and lie on the
 * heap, where the address sanitizer sees every byte too much.
 *
 * fuzz_client SEED RUNS: prints a line of counts, aborts at the first thing that must not be. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static ssize_t fuzz_read(int fd, void *to, size_t length);
static ssize_t fuzz_write(int fd, const void *from, size_t length);
static int fuzz_fstat(int fd, struct stat *status);
static void *fuzz_mmap(size_t length);
static void fuzz_exit(void) __attribute__((noreturn));

#define read(fd, to, length) fuzz_read(fd, to, length)
#define write(fd, from, length) fuzz_write(fd, from, length)
#define fstat(fd, status) fuzz_fstat(fd, status)
#define mmap(at, length, protection, flags, fd, offset) fuzz_mmap(length)
#define close(fd) ((void)(fd), 0)
#define syscall(...) 0L
#define prctl(...) (fuzz_filter(&program), 0)
#define setrlimit(resource, limit) ((void)(resource), (void)(limit), 0)
#define _exit(code) fuzz_exit()

static void fuzz_filter(const struct sock_fprog *program)
{
    if (program->len == 0)
        abort();
}

#include "optee_app.c"

#define ARENA (32 * APP_PAGE)

static struct app app;
static unsigned char arena[ARENA];
static jmp_buf over;
static uint64_t state;
static unsigned char message[1 << 17]; /* what the app reads next */
static size_t message_at, message_end;
static unsigned char said[sizeof(struct app_header)]; /* header of what the app says now */
static size_t said_at, payload_left;
static struct app_header last;
static unsigned depth;
static unsigned long answered, broken, entered, panics, reads;
static int greeted, wild;

static uint64_t draw(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(uint64_t limit)
{
    return (draw() >> 33) % limit;
}

static int one_in(uint64_t limit)
{
    return below(limit) == 0;
}

static void must(int truth, const char *what)
{
    if (!truth) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static uint64_t strange(void)
{
    static const uint64_t words[] = {
        0,    1,     7,      8,       4095,       4096,       4097,      65535,
        1u << 17, 1u << 24, (1u << 24) + 1, UINT32_MAX, UINT64_MAX, INT64_MAX, 1ull << 63,
    };

    return words[below(sizeof words / sizeof words[0])];
}

/* --- what the app reads ------------------------------------------------------------------------ */

static size_t expected_payload(void)
{
    switch (last.number) {
    case APP_SYSCALL_READ_GUEST:
    case APP_SYSCALL_READ_PINNED:
        return (size_t)last.args[2];
    case APP_SYSCALL_READ_PAGE_LIST:
        return (size_t)last.args[2] * 8;
    case APP_SYSCALL_PIN_PAGES:
        return last.payload_length;
    case APP_SYSCALL_ALLOC_SHADOW:
        return (size_t)last.args[0] * 8;
    default:
        return 0;
    }
}

static void make_message(void)
{
    struct app_header header;
    size_t payload = 0, n;
    int may_nest = (app.capabilities & APP_CAP_NESTING) != 0 && depth < app.max_entries;

    may_nest |= wild && one_in(60);
    memset(&header, 0, sizeof header);
    if (!greeted) {
        header.kind = APP_KIND_WELCOME;
        header.args[0] = APP_MAJOR;
        header.args[2] = below(8);
        header.args[3] = ARENA;
        header.args[4] = 1 + below(4);
        payload = below(3000);
        if (one_in(10))
            header.status = -(int64_t)below(12);
        greeted = 1;
    } else if (depth == 0 || (may_nest && one_in(6))) {
        header.kind = APP_KIND_ENTRY;
        header.number = (uint16_t)(1 + below(10 + (uint64_t)wild));
        header.entry = (uint32_t)draw();
        for (n = 0; n < APP_ARGS; n++)
            header.args[n] = one_in(2) ? below(10) : strange();
        if (header.number == APP_ENTRY_HANDLE_SMC)
            payload = 64;
        else if (header.number == APP_ENTRY_RESTORE || header.number == APP_ENTRY_INIT)
            payload = below(200);
    } else {
        static const int statuses[] = {0, 0, 0, 0, 1, -1, -2, -4, -5, -6};

        header.kind = APP_KIND_RESULT;
        header.number = last.number;
        header.entry = last.entry;
        header.status = statuses[below(10)];
        header.flags = one_in(4) ? APP_FLAG_PREEMPT : 0;
        for (n = 0; n < APP_ARGS; n++)
            header.args[n] = one_in(40) ? strange() : below(12) * APP_PAGE;
        payload = header.status == 0 ? expected_payload() : 0;
        if (last.number == APP_SYSCALL_READ_AND_PIN) {
            header.args[1] = below(last.args[2] + 1 + (uint64_t)wild);
            payload = (size_t)header.args[1] * 8;
        }
    }
    if (payload > sizeof message - sizeof header)
        payload = 0;
    header.payload_length = (uint32_t)payload;
    for (n = 0; n < payload; n++)
        message[sizeof header + n] = (unsigned char)draw();
    memcpy(message, &header, sizeof header);
    message_at = 0;
    message_end = sizeof header + payload;
    if (wild && one_in(12)) {
        unsigned char word[8];
        uint64_t value = strange();

        switch (below(5)) {
        case 0: /* any word of the header */
            memcpy(word, &value, sizeof word);
            memcpy(message + 8 * below(sizeof header / 8), word, sizeof word);
            break;
        case 1: /* the length, nearly right */
            header.payload_length += (uint32_t)(1 - 2 * (int)below(2)) * (uint32_t)(1 + below(8));
            memcpy(message, &header, sizeof header);
            break;
        case 2: /* any bit */
            message[below(message_end)] ^= (unsigned char)(1u << below(8));
            break;
        case 3: /* cut off */
            message_end = below(message_end + 1);
            break;
        default: /* two at once */
            if (message_end < 4096) {
                memcpy(message + message_end, message, message_end);
                message_end *= 2;
            }
            break;
        }
    }
}

static ssize_t fuzz_read(int fd, void *to, size_t length)
{
    must(fd == APP_SOURCE_FD, "read of another descriptor");
    must(length != 0, "read of nothing");
    reads++;
    if (one_in(50)) {
        errno = EINTR;
        return -1;
    }
    if (message_at == message_end) {
        if (one_in(400))
            return 0;
        make_message();
        if (message_at == message_end)
            return 0;
    }
    if (length > message_end - message_at)
        length = message_end - message_at;
    if (one_in(3))
        length = 1 + below(length);
    memcpy(to, message + message_at, length);
    message_at += length;
    return (ssize_t)length;
}

/* --- what the app writes ----------------------------------------------------------------------- */

static void heard(void)
{
    struct app_header header;

    memcpy(&header, said, sizeof header);
    must(header.reserved == 0, "reserved is not zero");
    must(header.payload_length <= APP_MAX_PAYLOAD, "a payload that is too long");
    must(header.kind == (greeted ? APP_KIND_SYSCALL : APP_KIND_HELLO), "kind");
    must(header.number <= APP_SYSCALL_LAST, "number");
    must((header.flags & ~(uint32_t)APP_FLAG_POSTED) == 0, "flags");
    must(header.flags == 0 || (app.offers & APP_OFFER_POSTING) != 0, "posted without being asked");
    must(header.status == 0 || header.number == APP_SYSCALL_RETURN, "status");
    must(header.status >= 0 && header.status <= APP_OUTCOME_FAILED, "outcome");
    last = header;
    payload_left = header.payload_length;
}

static ssize_t fuzz_write(int fd, const void *from, size_t length)
{
    const unsigned char *byte = from;
    size_t n;

    must(fd == APP_SINK_FD, "write to another descriptor");
    must(length != 0, "write of nothing");
    if (one_in(50)) {
        errno = one_in(40) ? EPIPE : EINTR;
        return -1;
    }
    if (one_in(4))
        length = 1 + below(length);
    for (n = 0; n < length; n++) {
        if (payload_left != 0) {
            payload_left--;
            continue;
        }
        said[said_at++] = byte[n];
        if (said_at == sizeof said) {
            said_at = 0;
            heard();
        }
    }
    return (ssize_t)length;
}

static int fuzz_fstat(int fd, struct stat *status)
{
    must(fd == APP_ARENA_FD, "fstat of another descriptor");
    memset(status, 0, sizeof *status);
    status->st_size = ARENA;
    return 0;
}

static void *fuzz_mmap(size_t length)
{
    must(length == ARENA, "a part of the arena");
    return arena;
}

static void fuzz_exit(void)
{
    panics++;
    longjmp(over, 1);
}

/* --- what the app does ------------------------------------------------------------------------- */

static void *room(size_t length)
{
    void *made = malloc(length);

    must(made != NULL || length == 0, "no memory");
    return made;
}

static int check(int status)
{
    must(status <= APP_NO && (status >= APP_HOST_FAILED || status == APP_LOST ||
                              status == APP_GARBLED),
         "a status that is none");
    if (status <= APP_LOST)
        must(app.broken == status, "broken without a note");
    answered++;
    return status;
}

static void offset_checked(int status, uint64_t offset, uint64_t pages)
{
    if (status == APP_OK)
        must(offset % APP_PAGE == 0 && offset <= ARENA && pages <= (ARENA - offset) / APP_PAGE,
             "an offset outside of the arena");
}

static void do_something(void)
{
    static uint64_t words[20000];
    struct app_segment segments[20];
    size_t count = below(20), bytes = below(4097), n;
    uint64_t one = 0, two = 0, x[8] = {0}, answer[4], *list;
    void *data;
    int status;

    switch (below(14)) {
    case 0:
        data = room(bytes);
        (void)check(app_read_guest(&app, 1, strange(), bytes, data));
        free(data);
        break;
    case 1:
        data = room(bytes);
        (void)check(app_read_pinned(&app, 1, strange(), bytes, data));
        free(data);
        break;
    case 2:
        list = room(count * 8 * 40);
        (void)check(app_read_page_list(&app, 1, 0, count * 40, &one, list));
        free(list);
        break;
    case 3:
        n = one_in(4) ? below(9000) : count;
        list = room(n * 8);
        (void)check(app_pin_pages(&app, 1, words, n, list));
        free(list);
        break;
    case 4:
        n = one_in(4) ? below(20000) : count;
        (void)check(app_unpin_pages(&app, 1, words, n));
        break;
    case 5:
    case 6:
        for (n = 0; n < count; n++) {
            segments[n].offset = (uint32_t)below(APP_PAGE + 2);
            segments[n].length = (uint32_t)below(one_in(3) ? 5000 : 30);
            segments[n].data = words;
        }
        if (one_in(2))
            status = app_write_guest(&app, 1, 0, segments, one_in(9) ? 513 : count);
        else
            status = app_write_pinned(&app, 1, 0, segments, one_in(9) ? SIZE_MAX : count);
        (void)check(status);
        break;
    case 7:
        list = room(count * 8);
        status = check(app_alloc_shadow(&app, count, &one, list));
        offset_checked(status, one, count);
        free(list);
        break;
    case 8:
        status = check(app_map_shadow(&app, words, count, &one));
        offset_checked(status, one, count);
        (void)check(app_free_shadow(&app, words, count));
        break;
    case 9:
        (void)check(app_smc(&app, x, answer));
        break;
    case 10:
        (void)check(app_should_preempt(&app, &one));
        (void)check(app_now(&app, &two));
        (void)check(app_register_hook(&app, 1, 2, 3));
        break;
    case 11:
        list = room(count * 8 * 50);
        status = check(app_read_and_pin(&app, 1, 0, count * 50, 511, &one, &two, list));
        if (status > APP_LOST)
            must(app.broken != 0 || two <= count * 50, "more pinned than asked for");
        free(list);
        break;
    case 12:
        (void)check(app_log(&app, 1, (const char *)words, one_in(2) ? below(3000) : 10));
        (void)check(app_inject_virq(&app, 1, 33));
        (void)check(app_wake_vcpu(&app, 1, 0));
        break;
    default:
        status = check(app_map_guest_page(&app, 1, 0, &one));
        offset_checked(status, one, 1);
        must(app_pin_pages(&app, 1, words, (size_t)APP_MAX_PAGES + 1, NULL) == APP_BAD_ARGUMENT,
             "a list that is too long");
        must(app_read_guest(&app, 1, 0, UINT64_MAX, NULL) == APP_BAD_ARGUMENT, "a huge read");
        break;
    }
}

static int work(void)
{
    size_t n, steps = below(6);
    int outcome;

    entered++;
    must(++depth <= app.max_entries, "more entries open than were agreed on");
    for (n = 0; n < steps; n++)
        do_something();
    depth--;
    outcome = one_in(20) ? -6 : one_in(300) ? 77 : 0;
    return app.broken != 0 ? app.broken : outcome;
}

static int on_init(struct app *unused, const struct app_init_in *in, struct app_init_out *out)
{
    (void)unused;
    for (size_t n = 0; n < in->length; n++)
        out->threads += (unsigned char)in->payload[n];
    return work();
}

static int on_smc(struct app *unused, const struct app_handle_smc_in *in,
                  struct app_handle_smc_out *out)
{
    (void)unused;
    memcpy(out->x, in->x, sizeof out->x);
    return work();
}

static int on_timer(struct app *unused)
{
    (void)unused;
    return work();
}

static int on_inspect(struct app *unused, struct app_inspect_out *out)
{
    (void)unused;
    out->payload = "{}";
    out->length = 2;
    return work();
}

static int on_snapshot(struct app *unused, struct app_snapshot_out *out)
{
    static char much[30000];

    (void)unused;
    out->payload = much;
    out->length = below(sizeof much);
    return work();
}

static int on_restore(struct app *unused, const struct app_restore_in *in,
                      struct app_restore_out *out)
{
    (void)unused;
    (void)out;
    must(in->length <= app.buffer_bytes, "a payload beyond the buffer");
    return work();
}

static void life(const struct app_handlers *handlers)
{
    uint64_t now = 0;

    if (setjmp(over) == 0) {
        int status = app_start(&app, "fuzzed", handlers, one_in(2) ? APP_CAP_NESTING : 0);

        if (status == APP_OK)
            status = app_run(&app);
        must(app.broken != 0, "ended without a reason");
        must(status == APP_OK || status == app.broken, "another reason");
        must(app_now(&app, &now) == app.broken, "goes on after its end");
        broken += app.broken == APP_GARBLED;
    }
}

int main(int count, char **arguments)
{
    static const struct app_handlers handlers = {
        .init = on_init,
        .handle_smc = on_smc,
        .handle_timer = on_timer,
        .inspect = on_inspect,
        .snapshot = on_snapshot,
        .restore = on_restore,
    };
    unsigned long run, runs = count > 2 ? strtoul(arguments[2], NULL, 10) : 1000;
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;

    for (run = 0; run < runs; run++) {
        state = (seed << 32) + run * 2 + 1;
        (void)draw();
        memset(&app, 0, sizeof app);
        message_at = message_end = said_at = payload_left = 0;
        depth = 0;
        greeted = 0;
        wild = (int)below(3) != 0;
        app.buffer_bytes = one_in(3) ? 0 : 1 + below(150);
        app.buffer = app.buffer_bytes == 0 ? NULL : room(app.buffer_bytes);
        life(&handlers);
        free(app.buffer);
    }
    printf("%lu %lu %lu %lu %lu\n", entered, answered, broken, panics, reads);
    return 0;
}
