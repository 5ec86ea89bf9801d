/* SPDX-License-Identifier: BSD-2-Clause */
/* Generated from specs/app_abi/app_abi.toml by `python -m specs.app_abi.c`; do not edit.
 *
 * The client of optee_app.h. It has no memory but struct app and its stack, and no state outside.
 */
#define _GNU_SOURCE
#include "optee_app.h"

#if defined(APP_KEEP_STDERR) && APP_KEEP_STDERR + 0 < 3
#error "APP_KEEP_STDERR is a descriptor beyond channel and arena"
#endif

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The header in memory is the one on the wire. */
#define APP_ASSERT(name, truth) typedef char app_assert_##name[(truth) ? 1 : -1]
APP_ASSERT(header, sizeof(struct app_header) == APP_HEADER_SIZE);
APP_ASSERT(header_kind, offsetof(struct app_header, kind) == 0);
APP_ASSERT(header_number, offsetof(struct app_header, number) == 2);
APP_ASSERT(header_flags, offsetof(struct app_header, flags) == 4);
APP_ASSERT(header_entry, offsetof(struct app_header, entry) == 8);
APP_ASSERT(header_payload_length, offsetof(struct app_header, payload_length) == 12);
APP_ASSERT(header_status, offsetof(struct app_header, status) == 16);
APP_ASSERT(header_args, offsetof(struct app_header, args) == 24);
APP_ASSERT(header_reserved, offsetof(struct app_header, reserved) == 88);

/* --- isolation ------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define APP_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define APP_ARCH AUDIT_ARCH_AARCH64
#else
#error "there is a seccomp filter for x86-64 and aarch64 only"
#endif

#define APP_LOAD_AT(place) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(place))
#define APP_LOAD(field) APP_LOAD_AT(offsetof(struct seccomp_data, field))
#define APP_ARGUMENT(n) APP_LOAD_AT(offsetof(struct seccomp_data, args) + 8 * (n))
#define APP_ARGUMENT_HIGH(n) APP_LOAD_AT(offsetof(struct seccomp_data, args) + 8 * (n) + 4)
#define APP_IF(test, value, yes, no) BPF_JUMP(BPF_JMP | (test) | BPF_K, (uint32_t)(value), yes, no)
#define APP_IF_EQUAL(value, yes, no) APP_IF(BPF_JEQ, value, yes, no)
#define APP_IF_BITS(value, yes, no) APP_IF(BPF_JSET, value, yes, no)
#define APP_ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define APP_REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define APP_KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

/* Each rule starts with the number of the call loaded, and falls through to the next if it is not
 * the one that it is about. */
#define APP_RULE(call) APP_IF_EQUAL(call, 0, 1), APP_ALLOW
#define APP_RULE_FD(call, fd) \
    APP_IF_EQUAL(call, 0, 6), APP_ARGUMENT(0), APP_IF_EQUAL(fd, 0, 3), APP_ARGUMENT_HIGH(0), \
        APP_IF_EQUAL(0, 0, 1), APP_ALLOW, APP_REFUSE
#define APP_RULE_FDS(call, fd, other) \
    APP_IF_EQUAL(call, 0, 5), APP_ARGUMENT(0), APP_IF_EQUAL(fd, 1, 0), APP_IF_EQUAL(other, 0, 1), \
        APP_ALLOW, APP_REFUSE
/* mmap: private or shared, but of no file and not executable. */
#define APP_RULE_MMAP \
    APP_IF_EQUAL(__NR_mmap, 0, 6), APP_ARGUMENT(2), APP_IF_BITS(PROT_EXEC, 3, 0), APP_ARGUMENT(3), \
        APP_IF_BITS(MAP_ANONYMOUS, 0, 1), APP_ALLOW, APP_REFUSE

static int app_limit(int resource, rlim_t value)
{
    struct rlimit limit;

    limit.rlim_cur = limit.rlim_max = value;
    return setrlimit(resource, &limit);
}

/* Closes all descriptors from first on. */
static void app_close_from(int first)
{
    struct rlimit limit;
    long fd, last = 65536;

#ifdef __NR_close_range
    if (syscall(__NR_close_range, (unsigned int)first, ~0U, 0U) == 0)
        return;
#endif
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 65536)
        last = (long)limit.rlim_cur;
    for (fd = first; fd < last; fd++)
        (void)close((int)fd);
}

int app_isolate(void)
{
    static struct sock_filter rules[] = {
        APP_LOAD(arch),
        APP_IF_EQUAL(APP_ARCH, 1, 0),
        APP_KILL,
        APP_LOAD(nr),
        APP_RULE_FD(__NR_read, APP_SOURCE_FD),
#ifdef APP_KEEP_STDERR
        APP_RULE_FDS(__NR_write, APP_SINK_FD, 2),
        APP_RULE(__NR_futex),
        APP_RULE(__NR_getpid),
        APP_RULE(__NR_gettid),
        APP_RULE(__NR_madvise),
        APP_RULE(__NR_mprotect),
        APP_RULE(__NR_sched_yield),
        APP_RULE(__NR_sigaltstack),
#else
        APP_RULE_FD(__NR_write, APP_SINK_FD),
#endif
        APP_RULE(__NR_exit_group),
        APP_RULE(__NR_exit),
        APP_RULE(__NR_rt_sigreturn),
        APP_RULE(__NR_brk),
        APP_RULE(__NR_munmap),
        APP_RULE_MMAP,
        APP_REFUSE,
    };
    const struct sock_fprog program = {
        (unsigned short)(sizeof rules / sizeof rules[0]),
        rules,
    };

    /* A channel that has ended is an error of the write, as it is one of the read; and an app that
     * does neither ends with the process that started it. Was that gone before, HELLO will fail. */
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        return APP_UNISOLATED;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return APP_UNISOLATED;
    if (app_limit(RLIMIT_CORE, 0) != 0 || app_limit(RLIMIT_FSIZE, 0) != 0 ||
        app_limit(RLIMIT_NPROC, 0) != 0 || app_limit(RLIMIT_NOFILE, APP_SINK_FD + 1) != 0)
        return APP_UNISOLATED;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        return APP_UNISOLATED;
    return APP_OK;
}

/* --- the channel ----------------------------------------------------------------------------- */

/* Notes why the channel is of no use; the first reason stays. */
static int app_break(struct app *app, int reason)
{
    if (app->broken == 0)
        app->broken = reason;
    return app->broken;
}

static void app_write(struct app *app, const unsigned char *data, size_t length)
{
    while (length != 0 && app->broken == 0) {
        ssize_t done = write(APP_SINK_FD, data, length);

        if (done > 0) {
            data += done;
            length -= (size_t)done;
        } else if (done == 0 || errno != EINTR) {
            (void)app_break(app, APP_LOST);
        }
    }
}

static void app_flush(struct app *app)
{
    size_t used = app->out_used;

    app->out_used = 0;
    app_write(app, app->out, used);
}

static void app_put(struct app *app, const void *data, size_t length)
{
    if (length > sizeof app->out - app->out_used)
        app_flush(app);
    if (length > sizeof app->out) {
        app_write(app, data, length);
    } else if (length != 0) {
        memcpy(app->out + app->out_used, data, length);
        app->out_used += length;
    }
}

static void app_put_message(struct app *app, unsigned kind, unsigned number, uint32_t flags,
                            int64_t status, const uint64_t *args, size_t payload)
{
    struct app_header header;

    memset(&header, 0, sizeof header);
    header.kind = (uint16_t)kind;
    header.number = (uint16_t)number;
    header.flags = flags;
    header.entry = app->entry;
    header.payload_length = (uint32_t)payload;
    header.status = status;
    if (args != NULL)
        memcpy(header.args, args, sizeof header.args);
    app_put(app, &header, sizeof header);
}

/* Exactly length bytes, or a broken channel. The buffer is refilled only when it is empty. */
static int app_get(struct app *app, void *data, size_t length)
{
    unsigned char *to = data;

    while (length != 0 && app->broken == 0) {
        size_t have = app->in_end - app->in_at;
        ssize_t done;

        if (have != 0) {
            if (have > length)
                have = length;
            memcpy(to, app->in + app->in_at, have);
            app->in_at += have;
            to += have;
            length -= have;
            continue;
        }
        if (length >= sizeof app->in) {
            done = read(APP_SOURCE_FD, to, length);
            if (done > 0) {
                to += done;
                length -= (size_t)done;
            }
        } else {
            done = read(APP_SOURCE_FD, app->in, sizeof app->in);
            if (done > 0) {
                app->in_at = 0;
                app->in_end = (size_t)done;
            }
        }
        if (done == 0 || (done < 0 && errno != EINTR))
            return app_break(app, APP_LOST);
    }
    return app->broken;
}

static int app_drop(struct app *app, size_t length)
{
    unsigned char waste[256];

    while (length != 0) {
        size_t part = length < sizeof waste ? length : sizeof waste;

        if (app_get(app, waste, part) != 0)
            break;
        length -= part;
    }
    return app->broken;
}

static int app_get_header(struct app *app, struct app_header *header)
{
    if (app_get(app, header, sizeof *header) != 0)
        return app->broken;
    if (header->payload_length > APP_MAX_PAYLOAD || header->reserved != 0)
        return app_break(app, APP_GARBLED);
    return APP_OK;
}

/* --- system calls ---------------------------------------------------------------------------- */

static int app_serve(struct app *app, const struct app_header *header);

/* Starts a call; its payload follows. may_post: it needs no answer. */
static void app_begin(struct app *app, unsigned number, int may_post, const uint64_t *args,
                      size_t payload)
{
    app->posting = may_post && (app->offers & APP_OFFER_POSTING) != 0 &&
                   app->posted < APP_MAX_POSTED;
    app_put_message(app, APP_KIND_SYSCALL, number, app->posting ? APP_FLAG_POSTED : 0, 0, args,
                    payload);
}

/* Sends what was begun and waits for its RESULT; meanwhile serves entries that come. The status,
 * with the header in answer and its payload not read yet. */
static int app_finish(struct app *app, unsigned number, struct app_header *answer)
{
    app->posted = 0;
    app_flush(app);
    while (app_get_header(app, answer) == 0) {
        if (answer->kind == APP_KIND_ENTRY) {
            uint32_t entry = app->entry;

            if ((app->capabilities & APP_CAP_NESTING) == 0)
                break;
            (void)app_serve(app, answer);
            app->entry = entry;
            continue;
        }
        if (answer->kind != APP_KIND_RESULT || answer->number != number ||
            answer->entry != app->entry || (answer->flags & ~(uint32_t)APP_FLAGS) != 0 ||
            answer->status > APP_NO || answer->status < APP_HOST_FAILED)
            break;
        app->flags = answer->flags;
        return (int)answer->status;
    }
    return app_break(app, APP_GARBLED);
}

/* The payload of a RESULT into out if it is just what was asked for. */
static int app_take(struct app *app, const struct app_header *answer, int status, void *out,
                    uint64_t length)
{
    if (app->broken != 0)
        return app->broken;
    if (answer->payload_length != length)
        return app_break(app, APP_GARBLED);
    if (app_get(app, out, (size_t)length) != 0)
        return app->broken;
    return status;
}

static int app_finish_posted(struct app *app, unsigned number)
{
    struct app_header answer;
    int status;

    if (app->posting) {
        app->posted++;
        return app->broken;
    }
    status = app_finish(app, number, &answer);
    return app_take(app, &answer, status, NULL, 0);
}

/* Whether pages begin at offset of the arena. */
static int app_in_arena(const struct app *app, uint64_t offset, uint64_t pages)
{
    return offset % APP_PAGE == 0 && offset <= app->arena_bytes &&
           pages <= (app->arena_bytes - offset) / APP_PAGE;
}

/* The length that a text is cut to: not inside a character. */
static size_t app_cut(const char *text, size_t length, size_t most)
{
    if (length <= most)
        return length;
    length = most;
    while (length != 0 && ((unsigned char)text[length] & 0xC0) == 0x80)
        length--;
    return length;
}

/* Bytes of a payload of segments, or more than a payload can have if one leaves its page. */
static size_t app_segments_bytes(const struct app_segment *segments, size_t count)
{
    size_t index, bytes = 8 * count;

    if (count > APP_MAX_SEGMENTS)
        return (size_t)APP_MAX_PAYLOAD + 1;
    for (index = 0; index < count; index++) {
        if (segments[index].offset > APP_PAGE ||
            segments[index].length > APP_PAGE - segments[index].offset)
            return (size_t)APP_MAX_PAYLOAD + 1;
        bytes += segments[index].length;
    }
    return bytes;
}

static void app_put_segments(struct app *app, const struct app_segment *segments, size_t count)
{
    size_t index;

    for (index = 0; index < count; index++) {
        const uint32_t pair[2] = {segments[index].offset, segments[index].length};

        app_put(app, pair, sizeof pair);
    }
    for (index = 0; index < count; index++)
        app_put(app, segments[index].data, segments[index].length);
}

int app_log(struct app *app, uint64_t guest, const char *text, size_t length)
{
    const uint64_t args[APP_ARGS] = {guest};

    length = app_cut(text, length, APP_MAX_LOG);
    app_begin(app, APP_SYSCALL_LOG, 1, args, length);
    app_put(app, text, length);
    return app_finish_posted(app, APP_SYSCALL_LOG);
}

void app_panic(struct app *app, const char *text, size_t length)
{
    length = app_cut(text, length, APP_MAX_LOG);
    app_begin(app, APP_SYSCALL_PANIC, 0, NULL, length);
    app_put(app, text, length);
    app_flush(app);
    _exit(1);
}

int app_read_guest(struct app *app, uint64_t guest, uint64_t ipa, uint64_t length, void *out)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, length};
    struct app_header answer;
    int status;

    if (length > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_READ_GUEST, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_READ_GUEST, &answer);
    return app_take(app, &answer, status, out, status == APP_OK ? length : 0);
}

int app_write_guest(struct app *app, uint64_t guest, uint64_t ipa,
                    const struct app_segment *segments, size_t count)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, count};
    const size_t bytes = app_segments_bytes(segments, count);
    struct app_header answer;
    int status;

    if (bytes > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_WRITE_GUEST, 0, args, bytes);
    app_put_segments(app, segments, count);
    status = app_finish(app, APP_SYSCALL_WRITE_GUEST, &answer);
    return app_take(app, &answer, status, NULL, 0);
}

int app_read_page_list(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries,
                       uint64_t *link, uint64_t *out)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, entries};
    struct app_header answer;
    int status;

    if (entries > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_READ_PAGE_LIST, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_READ_PAGE_LIST, &answer);
    if (status == APP_OK)
        *link = answer.args[0];
    return app_take(app, &answer, status, out, status == APP_OK ? entries * 8 : 0);
}

int app_pin_pages(struct app *app, uint64_t guest, const uint64_t *words, size_t count,
                  uint64_t *out)
{
    const uint64_t args[APP_ARGS] = {guest};
    struct app_header answer;
    int status;

    if (count > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_PIN_PAGES, 0, args, count * 8);
    app_put(app, words, count * 8);
    status = app_finish(app, APP_SYSCALL_PIN_PAGES, &answer);
    return app_take(app, &answer, status, out, status == APP_OK ? count * 8 : 0);
}

int app_unpin_pages(struct app *app, uint64_t guest, const uint64_t *words, size_t count)
{
    const uint64_t args[APP_ARGS] = {guest};

    if (count > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_UNPIN_PAGES, 1, args, count * 8);
    app_put(app, words, count * 8);
    return app_finish_posted(app, APP_SYSCALL_UNPIN_PAGES);
}

int app_read_pinned(struct app *app, uint64_t guest, uint64_t pa, uint64_t length, void *out)
{
    const uint64_t args[APP_ARGS] = {guest, pa, length};
    struct app_header answer;
    int status;

    if (length > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_READ_PINNED, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_READ_PINNED, &answer);
    return app_take(app, &answer, status, out, status == APP_OK ? length : 0);
}

int app_write_pinned(struct app *app, uint64_t guest, uint64_t pa,
                     const struct app_segment *segments, size_t count)
{
    const uint64_t args[APP_ARGS] = {guest, pa, count};
    const size_t bytes = app_segments_bytes(segments, count);

    if (bytes > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_WRITE_PINNED, 1, args, bytes);
    app_put_segments(app, segments, count);
    return app_finish_posted(app, APP_SYSCALL_WRITE_PINNED);
}

int app_alloc_shadow(struct app *app, uint64_t pages, uint64_t *offset, uint64_t *out)
{
    const uint64_t args[APP_ARGS] = {pages};
    struct app_header answer;
    int status;

    if (pages > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_ALLOC_SHADOW, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_ALLOC_SHADOW, &answer);
    if (status == APP_OK && !app_in_arena(app, answer.args[0], pages))
        return app_break(app, APP_GARBLED);
    if (status == APP_OK)
        *offset = answer.args[0];
    return app_take(app, &answer, status, out, status == APP_OK ? pages * 8 : 0);
}

int app_free_shadow(struct app *app, const uint64_t *words, size_t count)
{
    if (count > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_FREE_SHADOW, 1, NULL, count * 8);
    app_put(app, words, count * 8);
    return app_finish_posted(app, APP_SYSCALL_FREE_SHADOW);
}

int app_smc(struct app *app, const uint64_t x[8], uint64_t results[4])
{
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_SMC, 0, x, 0);
    status = app_finish(app, APP_SYSCALL_SMC, &answer);
    if (status == APP_OK)
        memcpy(results, answer.args, 4 * sizeof results[0]);
    return app_take(app, &answer, status, NULL, 0);
}

int app_should_preempt(struct app *app, uint64_t *preempt)
{
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_SHOULD_PREEMPT, 0, NULL, 0);
    status = app_finish(app, APP_SYSCALL_SHOULD_PREEMPT, &answer);
    if (status == APP_OK)
        *preempt = answer.args[0];
    return app_take(app, &answer, status, NULL, 0);
}

int app_inject_virq(struct app *app, uint64_t guest, uint64_t intid)
{
    const uint64_t args[APP_ARGS] = {guest, intid};

    app_begin(app, APP_SYSCALL_INJECT_VIRQ, 1, args, 0);
    return app_finish_posted(app, APP_SYSCALL_INJECT_VIRQ);
}

int app_now(struct app *app, uint64_t *now)
{
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_NOW, 0, NULL, 0);
    status = app_finish(app, APP_SYSCALL_NOW, &answer);
    if (status == APP_OK)
        *now = answer.args[0];
    return app_take(app, &answer, status, NULL, 0);
}

int app_set_timer(struct app *app, uint64_t deadline, uint64_t cancel)
{
    const uint64_t args[APP_ARGS] = {deadline, cancel};

    app_begin(app, APP_SYSCALL_SET_TIMER, 1, args, 0);
    return app_finish_posted(app, APP_SYSCALL_SET_TIMER);
}

int app_map_shadow(struct app *app, const uint64_t *words, size_t count, uint64_t *offset)
{
    struct app_header answer;
    int status;

    if (count > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_MAP_SHADOW, 0, NULL, count * 8);
    app_put(app, words, count * 8);
    status = app_finish(app, APP_SYSCALL_MAP_SHADOW, &answer);
    if (status == APP_OK && !app_in_arena(app, answer.args[0], count))
        return app_break(app, APP_GARBLED);
    if (status == APP_OK)
        *offset = answer.args[0];
    return app_take(app, &answer, status, NULL, 0);
}

int app_quarantine(struct app *app, uint64_t guest, uint64_t answer)
{
    const uint64_t args[APP_ARGS] = {guest, answer};

    app_begin(app, APP_SYSCALL_QUARANTINE, 1, args, 0);
    return app_finish_posted(app, APP_SYSCALL_QUARANTINE);
}

int app_park_vcpu(struct app *app, uint64_t guest, uint64_t vcpu, uint64_t until)
{
    const uint64_t args[APP_ARGS] = {guest, vcpu, until};

    app_begin(app, APP_SYSCALL_PARK_VCPU, 1, args, 0);
    return app_finish_posted(app, APP_SYSCALL_PARK_VCPU);
}

int app_wake_vcpu(struct app *app, uint64_t guest, uint64_t vcpu)
{
    const uint64_t args[APP_ARGS] = {guest, vcpu};

    app_begin(app, APP_SYSCALL_WAKE_VCPU, 1, args, 0);
    return app_finish_posted(app, APP_SYSCALL_WAKE_VCPU);
}

int app_register_hook(struct app *app, uint64_t kind, uint64_t first, uint64_t last)
{
    const uint64_t args[APP_ARGS] = {kind, first, last};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_REGISTER_HOOK, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_REGISTER_HOOK, &answer);
    return app_take(app, &answer, status, NULL, 0);
}

int app_map_guest_page(struct app *app, uint64_t guest, uint64_t ipa, uint64_t *offset)
{
    const uint64_t args[APP_ARGS] = {guest, ipa};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_MAP_GUEST_PAGE, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_MAP_GUEST_PAGE, &answer);
    if (status == APP_OK && !app_in_arena(app, answer.args[0], 1))
        return app_break(app, APP_GARBLED);
    if (status == APP_OK)
        *offset = answer.args[0];
    return app_take(app, &answer, status, NULL, 0);
}

int app_unmap_guest_page(struct app *app, uint64_t offset)
{
    const uint64_t args[APP_ARGS] = {offset};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_UNMAP_GUEST_PAGE, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_UNMAP_GUEST_PAGE, &answer);
    return app_take(app, &answer, status, NULL, 0);
}

int app_map_device(struct app *app, uint64_t pa, uint64_t *offset)
{
    const uint64_t args[APP_ARGS] = {pa};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_MAP_DEVICE, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_MAP_DEVICE, &answer);
    if (status == APP_OK && !app_in_arena(app, answer.args[0], 1))
        return app_break(app, APP_GARBLED);
    if (status == APP_OK)
        *offset = answer.args[0];
    return app_take(app, &answer, status, NULL, 0);
}

int app_iommu(struct app *app, uint64_t guest, uint64_t stream, uint64_t iova, uint64_t pa,
              uint64_t access)
{
    const uint64_t args[APP_ARGS] = {guest, stream, iova, pa, access};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_IOMMU, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_IOMMU, &answer);
    return app_take(app, &answer, status, NULL, 0);
}

int app_read_and_pin(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries, uint64_t step,
                     uint64_t *link, uint64_t *pinned, uint64_t *out)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, entries, step};
    struct app_header answer;
    int status;

    if (entries > APP_MAX_PAGES)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_READ_AND_PIN, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_READ_AND_PIN, &answer);
    if (app->broken == 0 && answer.args[1] > entries)
        return app_break(app, APP_GARBLED);
    if (app->broken == 0) {
        *link = answer.args[0];
        *pinned = answer.args[1];
    }
    return app_take(app, &answer, status, out, app->broken ? 0 : *pinned * 8);
}

int app_trace(struct app *app, const char *json, size_t length)
{
    if (length > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_TRACE, 1, NULL, length);
    app_put(app, json, length);
    return app_finish_posted(app, APP_SYSCALL_TRACE);
}

int app_write_result(struct app *app, uint64_t guest, uint64_t ipa, uint64_t refused_x0,
                     const struct app_segment *segments, size_t count)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, count, refused_x0};
    const size_t bytes = app_segments_bytes(segments, count);

    if (bytes > APP_MAX_PAYLOAD)
        return APP_BAD_ARGUMENT;
    app_begin(app, APP_SYSCALL_WRITE_RESULT, 1, args, bytes);
    app_put_segments(app, segments, count);
    return app_finish_posted(app, APP_SYSCALL_WRITE_RESULT);
}

int app_pin_list(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries, uint64_t step,
                 uint64_t offset, uint64_t *link, uint64_t *pinned, uint64_t *low)
{
    const uint64_t args[APP_ARGS] = {guest, ipa, entries, step, offset};
    struct app_header answer;
    int status;

    app_begin(app, APP_SYSCALL_PIN_LIST, 0, args, 0);
    status = app_finish(app, APP_SYSCALL_PIN_LIST, &answer);
    if (app->broken == 0 && answer.args[1] > entries)
        return app_break(app, APP_GARBLED);
    if (app->broken == 0) {
        *link = answer.args[0];
        *pinned = answer.args[1];
        *low = answer.args[2];
    }
    return app_take(app, &answer, status, NULL, 0);
}

/* --- entries --------------------------------------------------------------------------------- */

#define APP_BIT(outcome) (1U << APP_OUTCOME_##outcome)

/* An entry is over: everything that was posted goes with it. */
static int app_leave(struct app *app, int outcome, unsigned outcomes, const uint64_t *results,
                     const void *payload, size_t length)
{
    if (app->broken != 0)
        return app->broken;
    if (outcome < 0 && (outcomes & APP_BIT(FAILED)) != 0) {
        outcome = APP_OUTCOME_FAILED;
        length = 0;
    }
    if (outcome < 0 || outcome > 31 || (outcomes & 1U << outcome) == 0 ||
        length > APP_MAX_PAYLOAD) {
        static const char why[] = "a handler returned what is no outcome of its entry";

        app_panic(app, why, sizeof why - 1);
    }
    app->posted = 0;
    app_put_message(app, APP_KIND_SYSCALL, APP_SYSCALL_RETURN, 0, outcome, results, length);
    app_put(app, payload, length);
    app_flush(app);
    return app->broken;
}

static int app_serve_init(struct app *app, const struct app_header *header)
{
    struct app_init_in in;
    struct app_init_out out;
    uint64_t results[APP_ARGS] = {0};
    int outcome = APP_OUTCOME_DONE;

    in.payload = app->buffer;
    in.length = header->payload_length;
    if (in.length > (app->buffer == NULL ? 0 : app->buffer_bytes)) {
        if (app_drop(app, in.length) != 0)
            return app->broken;
        return app_leave(app, APP_TOO_MUCH, APP_BIT(DONE) | APP_BIT(REFUSED) | APP_BIT(FAILED),
                         NULL, NULL, 0);
    }
    if (app_get(app, app->buffer, in.length) != 0)
        return app->broken;
    in.mode = header->args[0];
    in.threads = header->args[1];
    memset(&out, 0, sizeof out);
    if (app->handlers->init != NULL)
        outcome = app->handlers->init(app, &in, &out);
    results[0] = out.threads;
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(REFUSED) | APP_BIT(FAILED), results,
                     out.payload, out.length);
}

static int app_serve_guest_created(struct app *app, const struct app_header *header)
{
    struct app_guest_created_in in;
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    in.guest = header->args[0];
    in.client = header->args[1];
    if (app->handlers->guest_created != NULL)
        outcome = app->handlers->guest_created(app, &in);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(REFUSED) | APP_BIT(FAILED), NULL,
                     NULL, 0);
}

static int app_serve_guest_destroyed(struct app *app, const struct app_header *header)
{
    struct app_guest_destroyed_in in;
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    in.guest = header->args[0];
    if (app->handlers->guest_destroyed != NULL)
        outcome = app->handlers->guest_destroyed(app, &in);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(PREEMPTED) | APP_BIT(FAILED), NULL,
                     NULL, 0);
}

static int app_serve_handle_smc(struct app *app, const struct app_header *header)
{
    struct app_handle_smc_in in;
    struct app_handle_smc_out out;
    uint64_t results[APP_ARGS] = {0};
    int outcome = APP_OUTCOME_NOT_MINE;

    if (header->payload_length != sizeof in.x)
        return app_break(app, APP_GARBLED);
    if (app_get(app, in.x, sizeof in.x) != 0)
        return app->broken;
    in.guest = header->args[0];
    in.vcpu = header->args[1];
    memset(&out, 0, sizeof out);
    if (app->handlers->handle_smc != NULL)
        outcome = app->handlers->handle_smc(app, &in, &out);
    memcpy(results, out.x, sizeof out.x);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(NOT_MINE) | APP_BIT(FAILED), results,
                     NULL, 0);
}

static int app_serve_handle_mmio(struct app *app, const struct app_header *header)
{
    struct app_handle_mmio_in in;
    struct app_handle_mmio_out out;
    uint64_t results[APP_ARGS] = {0};
    int outcome = APP_OUTCOME_NOT_MINE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    in.guest = header->args[0];
    in.vcpu = header->args[1];
    in.ipa = header->args[2];
    in.size = header->args[3];
    in.write = header->args[4];
    in.value = header->args[5];
    memset(&out, 0, sizeof out);
    if (app->handlers->handle_mmio != NULL)
        outcome = app->handlers->handle_mmio(app, &in, &out);
    results[0] = out.value;
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(NOT_MINE) | APP_BIT(FAILED), results,
                     NULL, 0);
}

static int app_serve_handle_timer(struct app *app, const struct app_header *header)
{
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    if (app->handlers->handle_timer != NULL)
        outcome = app->handlers->handle_timer(app);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(PREEMPTED) | APP_BIT(FAILED), NULL,
                     NULL, 0);
}

static int app_serve_handle_interrupt(struct app *app, const struct app_header *header)
{
    struct app_handle_interrupt_in in;
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    in.intid = header->args[0];
    if (app->handlers->handle_interrupt != NULL)
        outcome = app->handlers->handle_interrupt(app, &in);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(PREEMPTED) | APP_BIT(FAILED), NULL,
                     NULL, 0);
}

static int app_serve_inspect(struct app *app, const struct app_header *header)
{
    struct app_inspect_out out;
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    memset(&out, 0, sizeof out);
    if (app->handlers->inspect != NULL)
        outcome = app->handlers->inspect(app, &out);
    return app_leave(app, outcome, APP_BIT(DONE), NULL,
                     out.payload, out.length);
}

static int app_serve_snapshot(struct app *app, const struct app_header *header)
{
    struct app_snapshot_out out;
    int outcome = APP_OUTCOME_DONE;

    if (header->payload_length != 0)
        return app_break(app, APP_GARBLED);
    memset(&out, 0, sizeof out);
    if (app->handlers->snapshot != NULL)
        outcome = app->handlers->snapshot(app, &out);
    return app_leave(app, outcome, APP_BIT(DONE), NULL,
                     out.payload, out.length);
}

static int app_serve_restore(struct app *app, const struct app_header *header)
{
    struct app_restore_in in;
    struct app_restore_out out;
    int outcome = APP_OUTCOME_REFUSED;

    in.payload = app->buffer;
    in.length = header->payload_length;
    if (in.length > (app->buffer == NULL ? 0 : app->buffer_bytes)) {
        if (app_drop(app, in.length) != 0)
            return app->broken;
        return app_leave(app, APP_TOO_MUCH, APP_BIT(DONE) | APP_BIT(REFUSED) | APP_BIT(FAILED),
                         NULL, NULL, 0);
    }
    if (app_get(app, app->buffer, in.length) != 0)
        return app->broken;
    memset(&out, 0, sizeof out);
    if (app->handlers->restore != NULL)
        outcome = app->handlers->restore(app, &in, &out);
    return app_leave(app, outcome, APP_BIT(DONE) | APP_BIT(REFUSED) | APP_BIT(FAILED), NULL,
                     out.payload, out.length);
}

/* Serves one ENTRY, whose header was read. */
static int app_serve(struct app *app, const struct app_header *header)
{
    if (header->kind != APP_KIND_ENTRY || header->flags != 0 || header->status != 0 ||
        app->depth >= app->max_entries)
        return app_break(app, APP_GARBLED);
    app->entry = header->entry;
    app->depth++;
    switch (header->number) {
    case APP_ENTRY_INIT:
        (void)app_serve_init(app, header);
        break;
    case APP_ENTRY_GUEST_CREATED:
        (void)app_serve_guest_created(app, header);
        break;
    case APP_ENTRY_GUEST_DESTROYED:
        (void)app_serve_guest_destroyed(app, header);
        break;
    case APP_ENTRY_HANDLE_SMC:
        (void)app_serve_handle_smc(app, header);
        break;
    case APP_ENTRY_HANDLE_MMIO:
        (void)app_serve_handle_mmio(app, header);
        break;
    case APP_ENTRY_HANDLE_TIMER:
        (void)app_serve_handle_timer(app, header);
        break;
    case APP_ENTRY_HANDLE_INTERRUPT:
        (void)app_serve_handle_interrupt(app, header);
        break;
    case APP_ENTRY_INSPECT:
        (void)app_serve_inspect(app, header);
        break;
    case APP_ENTRY_SNAPSHOT:
        (void)app_serve_snapshot(app, header);
        break;
    case APP_ENTRY_RESTORE:
        (void)app_serve_restore(app, header);
        break;
    default:
        (void)app_break(app, APP_GARBLED);
    }
    app->depth--;
    return app->broken;
}

/* --- life ------------------------------------------------------------------------------------ */

int app_start(struct app *app, const char *name, const struct app_handlers *handlers,
              uint64_t capabilities)
{
    uint64_t args[APP_ARGS] = {APP_MAJOR, APP_MINOR};
    struct app_header answer;
    struct stat status;
    size_t length = strlen(name);
    void *arena;
    int result;

    app->handlers = handlers;
    app->capabilities = capabilities & (APP_CAP_NESTING | APP_CAP_TRACE);
    if (handlers->inspect != NULL && handlers->snapshot != NULL && handlers->restore != NULL)
        app->capabilities |= APP_CAP_STATE;
    app->out_used = app->in_at = app->in_end = app->settings_length = 0;
    app->broken = app->posting = 0;
    app->posted = app->entry = app->flags = 0;
    app->depth = app->offers = 0;

    if (fstat(APP_ARENA_FD, &status) != 0 || status.st_size <= 0 || status.st_size % APP_PAGE != 0)
        return APP_NO_ARENA;
    app->arena_bytes = (uint64_t)status.st_size;
    arena = mmap(NULL, (size_t)app->arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                 APP_ARENA_FD, 0);
    if (arena == MAP_FAILED)
        return APP_NO_ARENA;
    app->arena = arena;
#ifdef APP_KEEP_STDERR
    if (dup2(APP_KEEP_STDERR, 2) != 2)
        (void)close(APP_ARENA_FD);
    app_close_from(3);
#else
    app_close_from(APP_ARENA_FD);
#endif
    result = app_isolate();
    if (result != APP_OK)
        return result;

    length = app_cut(name, length, APP_MAX_NAME);
    args[2] = app->capabilities;
    app_put_message(app, APP_KIND_HELLO, 0, 0, 0, args, length);
    app_put(app, name, length);
    app_flush(app);

    if (app_get_header(app, &answer) != 0)
        return app->broken;
    if (answer.kind != APP_KIND_WELCOME || answer.number != 0 || answer.entry != 0 ||
        answer.status > 0 || answer.status < APP_STATUS_LAST)
        return app_break(app, APP_GARBLED);
    if (answer.status < 0)
        return app_break(app, (int)answer.status);
    if (answer.args[0] != APP_MAJOR || answer.args[3] != app->arena_bytes || answer.args[4] == 0 ||
        answer.args[4] > APP_MAX_ENTRIES)
        return app_break(app, APP_GARBLED);
    app->offers = answer.args[2];
    app->max_entries = answer.args[4];
    length = answer.payload_length;
    app->settings_length = length < sizeof app->settings ? length : sizeof app->settings;
    (void)app_get(app, app->settings, app->settings_length);
    return app_drop(app, length - app->settings_length);
}

int app_run(struct app *app)
{
    struct app_header header;

    while (app->broken == 0) {
        if (app_get_header(app, &header) == 0)
            (void)app_serve(app, &header);
    }
    return app->broken == APP_LOST ? APP_OK : app->broken;
}
