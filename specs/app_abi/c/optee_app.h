/* SPDX-License-Identifier: BSD-2-Clause */
/* Generated from specs/app_abi/app_abi.toml by `python -m specs.app_abi.c`; do not edit.
 *
 * The app ABI 1.0 and a blocking client for it: C99, Linux, nothing but the C library. An app
 * gives a table of handlers to app_start() and calls app_run(), which serves one entry after the
 * other until the hypervisor closes the channel. A handler asks the hypervisor for services with
 * the functions below; it must not do anything else to the outside.
 *
 * Every function that asks for a service returns a status: APP_OK, APP_NO (the service's own
 * refusal) or a negative number: a status of the ABI, or APP_LOST or APP_GARBLED, after which the
 * channel is of no use and everything else fails in the same way. Lengths and offsets that come
 * from outside are checked; memory that a handler gets back is filled completely or, unless the
 * status is APP_OK, has no meaning.
 */
#ifndef OPTEE_APP_H
#define OPTEE_APP_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the app ABI is little-endian, and so must be the processor"
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define APP_MAJOR 1
#define APP_MINOR 0
#define APP_HEADER_SIZE 96 /* bytes */
#define APP_ARGS 8

/* Kinds of messages. */
#define APP_KIND_HELLO 1 /* The app is isolated, has mapped the arena, and speaks this ABI. */
/* Answer to HELLO. A negative status refuses the app; the payload then says why, and the channel
 * ends. */
#define APP_KIND_WELCOME 2
/* Something for the app to do; number is that of an [[entry]]. Answered by RETURN. */
#define APP_KIND_ENTRY 3
/* Something that the app asks for; number is that of a [[syscall]]. Answered by RESULT unless
 * posted. */
#define APP_KIND_SYSCALL 4
#define APP_KIND_RESULT 5 /* Answer to a SYSCALL: status, results in args, payload. */

/* Flags. */
/* On a SYSCALL that may be posted: no RESULT is wanted. It takes effect before the next SYSCALL
 * of the app. */
#define APP_FLAG_POSTED 1
/* On a RESULT of READ_AND_PIN or PIN_LIST: stopped because the hypervisor wants the processor. */
#define APP_FLAG_PREEMPT 2

/* What an app can do. */
/* Of an app: an ENTRY may come while it waits for a RESULT; RESULTs then come in stack order,
 * for the youngest open entry first. Without it entries come one after the other. */
#define APP_CAP_NESTING 1
#define APP_CAP_INTERLEAVING 2 /* Of an app: with NESTING, RESULTs may come in any order. */
#define APP_CAP_TRACE 4 /* Of an app: it sends TRACE if the hypervisor offers to listen. */
#define APP_CAP_STATE 8 /* Of an app: it serves the entries INSPECT, SNAPSHOT and RESTORE. */
/* Of an app: HANDLE_SMC may bring with it what the app will probably read first: args_ahead say
 * which syscall for this guest was done already, and what it gave follows the registers. It may
 * be taken for the result of that syscall as long as the app has neither posted nor asked for
 * anything in this entry. Without this capability the args_ahead are zero. */
#define APP_CAP_READ_AHEAD 16

/* What the hypervisor offers. */
/* Of the hypervisor: syscalls may be posted. Without it each waits for its RESULT. */
#define APP_OFFER_POSTING 1
/* Of the hypervisor: READ_AND_PIN, PIN_LIST and WRITE_RESULT may be used. */
#define APP_OFFER_FUSED 2
#define APP_OFFER_TRACE 4 /* Of the hypervisor: it wants TRACE. */

/* Statuses. */
#define APP_OK 0 /* Done. */
#define APP_NO 1 /* The service's own refusal: a page that is not the guest's, no memory left. */
/* An argument or payload is out of its range. Counted as a refusal. */
#define APP_BAD_ARGUMENT (-1)
/* Not in the manifest, or not for the guest of this entry. Counted as a refusal. */
#define APP_NOT_ALLOWED (-2)
#define APP_NO_SUCH_CALL (-3) /* Unknown number. Counted as a refusal. */
/* A frame that this app has not pinned, or pages that were not allocated for it. Counted as a
 * refusal. */
#define APP_NOT_YOURS (-4)
#define APP_TOO_MUCH (-5) /* A limit of the manifest or of this ABI is reached. */
/* The hypervisor's own service failed. The app gives back what the entry holds and returns
 * FAILED. */
#define APP_HOST_FAILED (-6)
/* WELCOME only: the hypervisor does not know this major version. */
#define APP_UNKNOWN_VERSION (-7)
/* WELCOME only: a layer of isolation is missing that the hypervisor requires. */
#define APP_NOT_ISOLATED (-8)
#define APP_NOT_TRUSTED (-9) /* WELCOME only: the name is not that of the manifest. */

/* How an entry ends. */
#define APP_OUTCOME_DONE 0 /* Served; args are the results of the entry. */
#define APP_OUTCOME_PREEMPTED 1 /* Stopped on the way: enter again. */
#define APP_OUTCOME_NOT_MINE 2 /* Not a call or access of this app. */
/* INIT: no usable TEE; GUEST_CREATED: the guest is not taken; RESTORE: no snapshot of this
 * version. */
#define APP_OUTCOME_REFUSED 3
/* After HOST_FAILED: given back what the entry held; nothing was served. */
#define APP_OUTCOME_FAILED 4

/* Limits. */
/* bytes. Of one message. A longer one ends the app before anything is allocated for it. */
#define APP_MAX_PAYLOAD 16777216
/* entries. Open at a time: as many as the machine may have processors. */
#define APP_MAX_ENTRIES 256
#define APP_MAX_POSTED 4096 /* messages. Posted before one that is not. */
/* segments. Of one write: more than a message of 127 parameters has results. */
#define APP_MAX_SEGMENTS 512
#define APP_MAX_LOG 1024 /* bytes. Of one LOG or PANIC; the rest is cut off. */
#define APP_MAX_NAME 64 /* bytes. Of the app's name in HELLO. */
#define APP_MAX_REFUSALS 1000 /* syscalls. Refused in the life of one process before it is ended. */
#define APP_MAX_HOOKS 64 /* hooks. Of one app. */
/* pages. At the start of the arena, for MAP_GUEST_PAGE and MAP_DEVICE. The pages behind them are
 * for shadows. */
#define APP_WINDOW_PAGES 16
/* pages. In one list of READ_PAGE_LIST, PIN_PAGES, UNPIN_PAGES, READ_AND_PIN and PIN_LIST: what
 * fits MAX_PAYLOAD. */
#define APP_MAX_PAGES 2097152

/* Hooks. */
/* function ids, inclusive. Traps whose function id (low word of x0) is in the range enter
 * HANDLE_SMC; all others are not this app's. */
#define APP_HOOK_SMC 1
/* guest physical addresses, inclusive. Trapped accesses in the range enter HANDLE_MMIO. */
#define APP_HOOK_MMIO 2
/* none: first and last are zero. The deadline of SET_TIMER enters HANDLE_TIMER. */
#define APP_HOOK_TIMER 3
/* interrupt ids, inclusive. These physical interrupts enter HANDLE_INTERRUPT. */
#define APP_HOOK_INTERRUPT 4

/* Entries. */
#define APP_ENTRY_INIT 1
#define APP_ENTRY_GUEST_CREATED 2
#define APP_ENTRY_GUEST_DESTROYED 3
#define APP_ENTRY_HANDLE_SMC 4
#define APP_ENTRY_HANDLE_MMIO 5
#define APP_ENTRY_HANDLE_TIMER 6
#define APP_ENTRY_HANDLE_INTERRUPT 7
#define APP_ENTRY_INSPECT 8
#define APP_ENTRY_SNAPSHOT 9
#define APP_ENTRY_RESTORE 10

/* System calls. */
#define APP_SYSCALL_RETURN 0
#define APP_SYSCALL_LOG 1
#define APP_SYSCALL_PANIC 2
#define APP_SYSCALL_READ_GUEST 3
#define APP_SYSCALL_WRITE_GUEST 4
#define APP_SYSCALL_READ_PAGE_LIST 5
#define APP_SYSCALL_PIN_PAGES 6
#define APP_SYSCALL_UNPIN_PAGES 7
#define APP_SYSCALL_READ_PINNED 8
#define APP_SYSCALL_WRITE_PINNED 9
#define APP_SYSCALL_ALLOC_SHADOW 10
#define APP_SYSCALL_FREE_SHADOW 11
#define APP_SYSCALL_SMC 12
#define APP_SYSCALL_SHOULD_PREEMPT 13
#define APP_SYSCALL_INJECT_VIRQ 14
#define APP_SYSCALL_NOW 15
#define APP_SYSCALL_SET_TIMER 16
#define APP_SYSCALL_MAP_SHADOW 17
#define APP_SYSCALL_QUARANTINE 18
#define APP_SYSCALL_PARK_VCPU 19
#define APP_SYSCALL_WAKE_VCPU 20
#define APP_SYSCALL_REGISTER_HOOK 21
#define APP_SYSCALL_MAP_GUEST_PAGE 22
#define APP_SYSCALL_UNMAP_GUEST_PAGE 23
#define APP_SYSCALL_MAP_DEVICE 24
#define APP_SYSCALL_IOMMU 25
#define APP_SYSCALL_READ_AND_PIN 26
#define APP_SYSCALL_TRACE 27
#define APP_SYSCALL_WRITE_RESULT 28
#define APP_SYSCALL_PIN_LIST 29

#define APP_FLAGS (APP_FLAG_POSTED | APP_FLAG_PREEMPT)
#define APP_SYSCALL_LAST 29
#define APP_STATUS_LAST (-9)
#define APP_NO_GUEST UINT64_MAX /* in place of a guest in app_log() */

/* Of this client, not of the ABI. */
#define APP_LOST (-64)     /* the hypervisor closed the channel */
#define APP_GARBLED (-65)  /* what came is not a message that may come now */
#define APP_UNISOLATED (-66) /* a layer of isolation could not be put on */
#define APP_NO_ARENA (-67) /* descriptor 2 is not memory that can be mapped */

#define APP_PAGE 4096
#define APP_SOURCE_FD 0 /* the channel: a pipe to read */
#define APP_SINK_FD 1   /* and one to write */
#define APP_ARENA_FD 2  /* until it is mapped */
#define APP_OUT_BYTES 16384  /* posted calls wait here; longer ones are sent in pieces */
#define APP_IN_BYTES 8192    /* a message with a page, whole */
#define APP_SETTINGS_BYTES 1024 /* of the settings in WELCOME, the rest is dropped */

/* A message's header; payload_length bytes follow. */
struct app_header {
    uint16_t kind;
    uint16_t number;
    uint32_t flags;
    uint32_t entry;
    uint32_t payload_length;
    int64_t status;
    uint64_t args[8];
    uint64_t reserved;
};

/* A piece of a write: length bytes at offset of the page. */
struct app_segment {
    uint32_t offset;
    uint32_t length;
    const void *data;
};

struct app;

/* INIT: Mode 0, the first entry of all: register hooks. Mode 1: look for the TEE. Mode 2: after
 * a restart, the TEE was found before and has this many threads; do not ask it again. Mode 3,
 * needs STATE: forget everything, and take the settings in the payload; mode 0 or 2 follows.
 * Outcomes: DONE, REFUSED, FAILED. */
struct app_init_in {
    uint64_t mode; /* 0, 1, 2 or 3 */
    uint64_t threads; /* threads of the TEE, mode 2 only */
    const char *payload; /* json, in the buffer of struct app */
    size_t length;
};
struct app_init_out {
    uint64_t threads; /* threads of the TEE */
    const char *payload; /* text: REFUSED: why there is no usable TEE */
    size_t length;
};
typedef int (*app_init_handler)(struct app *app,
                                const struct app_init_in *in,
                                struct app_init_out *out);

/* GUEST_CREATED: A guest begins; the app tells the TEE (VM_CREATED). Outcomes: DONE, REFUSED,
 * FAILED. */
struct app_guest_created_in {
    uint64_t guest; /* guest id */
    uint64_t client; /* client id of the guest towards the TEE, never 0 */
};
typedef int (*app_guest_created_handler)(struct app *app, const struct app_guest_created_in *in);

/* GUEST_DESTROYED: A guest ends: release all that it has, then tell the TEE (VM_DESTROYED).
 * Outcomes: DONE, PREEMPTED, FAILED. */
struct app_guest_destroyed_in {
    uint64_t guest; /* guest id */
};
typedef int (*app_guest_destroyed_handler)(struct app *app,
                                           const struct app_guest_destroyed_in *in);

/* HANDLE_SMC: A guest executed SMC or HVC with a function id that the app hooked. Results are
 * x0..x7. Outcomes: DONE, NOT_MINE, FAILED. */
struct app_handle_smc_in {
    uint64_t guest; /* guest id */
    uint64_t vcpu; /* index */
    uint64_t x[8]; /* registers */
};
struct app_handle_smc_out {
    uint64_t x[8]; /* register */
};
typedef int (*app_handle_smc_handler)(struct app *app,
                                      const struct app_handle_smc_in *in,
                                      struct app_handle_smc_out *out);

/* HANDLE_MMIO: A guest's access to an address that the app hooked trapped. Outcomes: DONE,
 * NOT_MINE, FAILED. */
struct app_handle_mmio_in {
    uint64_t guest; /* guest id */
    uint64_t vcpu; /* index */
    uint64_t ipa; /* guest physical address */
    uint64_t size; /* bytes: 1, 2, 4 or 8 */
    uint64_t write; /* 1: a store */
    uint64_t value; /* what is stored */
};
struct app_handle_mmio_out {
    uint64_t value; /* what a load gives */
};
typedef int (*app_handle_mmio_handler)(struct app *app,
                                       const struct app_handle_mmio_in *in,
                                       struct app_handle_mmio_out *out);

/* HANDLE_TIMER: The deadline of SET_TIMER has come. Outcomes: DONE, PREEMPTED, FAILED. */
typedef int (*app_handle_timer_handler)(struct app *app);

/* HANDLE_INTERRUPT: A physical interrupt that the app hooked was raised. Outcomes: DONE,
 * PREEMPTED, FAILED. */
struct app_handle_interrupt_in {
    uint64_t intid; /* interrupt id */
};
typedef int (*app_handle_interrupt_handler)(struct app *app,
                                            const struct app_handle_interrupt_in *in);

/* INSPECT: Needs STATE. Counters for people and checkers; changes nothing. Outcomes: DONE. */
struct app_inspect_out {
    const char *payload; /* json: an object with guests and waits */
    size_t length;
};
typedef int (*app_inspect_handler)(struct app *app, struct app_inspect_out *out);

/* SNAPSHOT: Needs STATE. All state of the app as data, between entries. Outcomes: DONE. */
struct app_snapshot_out {
    const char *payload; /* json: what RESTORE takes */
    size_t length;
};
typedef int (*app_snapshot_handler)(struct app *app, struct app_snapshot_out *out);

/* RESTORE: Needs STATE. Replace all state by that of a snapshot; MAP_SHADOW gives access to its
 * pages. Outcomes: DONE, REFUSED, FAILED. */
struct app_restore_in {
    const char *payload; /* json, in the buffer of struct app */
    size_t length;
};
struct app_restore_out {
    const char *payload; /* text: REFUSED: why */
    size_t length;
};
typedef int (*app_restore_handler)(struct app *app,
                                   const struct app_restore_in *in,
                                   struct app_restore_out *out);

/* Anything may be null: the entry is then answered with its mildest outcome. */
struct app_handlers {
    app_init_handler init;
    app_guest_created_handler guest_created;
    app_guest_destroyed_handler guest_destroyed;
    app_handle_smc_handler handle_smc;
    app_handle_mmio_handler handle_mmio;
    app_handle_timer_handler handle_timer;
    app_handle_interrupt_handler handle_interrupt;
    app_inspect_handler inspect;
    app_snapshot_handler snapshot;
    app_restore_handler restore;
};

/* One channel. Zero it, or keep it static; it is large for a stack. */
struct app {
    void *user;              /* the app's own */
    unsigned char *arena;    /* memory that is shared with hypervisor and TEE */
    uint64_t arena_bytes;
    uint64_t offers;         /* APP_OFFER_* */
    uint64_t max_entries;    /* entries open at a time */
    uint32_t flags;          /* APP_FLAG_* of the last RESULT */
    void *buffer;            /* where the payload of INIT and RESTORE goes, may be null */
    size_t buffer_bytes;
    size_t settings_length;
    char settings[APP_SETTINGS_BYTES];

    /* The client's own. */
    const struct app_handlers *handlers;
    uint64_t capabilities;
    uint64_t depth;
    uint32_t entry;
    uint32_t posted;
    int posting;
    int broken;
    size_t out_used;
    size_t in_at;
    size_t in_end;
    unsigned char out[APP_OUT_BYTES];
    unsigned char in[APP_IN_BYTES];
};

/* Maps the arena, closes every descriptor but the channel, takes all privileges away
 * (app_isolate), and says HELLO. From then on the process ends with the one that started it.
 * capabilities: APP_CAP_NESTING if the handlers can be entered again while they wait for a service,
 * APP_CAP_TRACE if the app uses app_trace where app->offers has APP_OFFER_TRACE; STATE is added if
 * there are handlers for it. Set user and buffer before. */
int app_start(struct app *app, const char *name, const struct app_handlers *handlers,
              uint64_t capabilities);

/* No new privileges, resource limits, and a seccomp filter: read and write of the channel, private
 * memory that is not executable, and exit. app_start() does it. Built with APP_KEEP_STDERR=<n> (for
 * tests of an app, never for use), descriptor n becomes standard error once the arena is mapped, if
 * it is open, and sanitizers can work. */
int app_isolate(void);

/* Serves entries until the hypervisor closes the channel (APP_OK) or it is of no use any more. */
int app_run(struct app *app);

/* A diagnostic for the operator. guest: guest id, or 2^64 - 1 for none. text: at most MAX_LOG
 * bytes. */
int app_log(struct app *app, uint64_t guest, const char *text, size_t length);

/* The app gives up. Never answered: the process is ended. text: why, at most MAX_LOG bytes. */
void app_panic(struct app *app, const char *text, size_t length) __attribute__((noreturn));

/* Copy guest memory once. NO unless the page is RAM that the guest owns. guest: guest id; ipa:
 * guest physical address; length: bytes, 1 to 4096, inside one page. out: length bytes. */
int app_read_guest(struct app *app, uint64_t guest, uint64_t ipa, uint64_t length, void *out);

/* Write into a guest page, all segments or none. NO unless it is the guest's own RAM, mapped
 * read-write now. guest: guest id; ipa: guest physical address, low 12 bits zero; count:
 * segments, 0 to MAX_SEGMENTS. */
int app_write_guest(struct app *app, uint64_t guest, uint64_t ipa,
                    const struct app_segment *segments, size_t count);

/* Copy entries of a non-contiguous page list, following word 511 of each list page. NO if a list
 * page is not the guest's own read-write RAM. guest: guest id; ipa: first list page, low 12 bits
 * ignored; entries: words, 1 to MAX_PAGES; link: word 511 of the last page read, 0 if the
 * entries ended before it. out: entries words. */
int app_read_page_list(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries,
                       uint64_t *link, uint64_t *out);

/* Translate and pin, all or nothing. NO unless every page is the guest's own read-write RAM.
 * guest: guest id. words: guest physical addresses, low 12 bits ignored; a page may occur
 * several times. out: count words; physical page addresses, same order. */
int app_pin_pages(struct app *app, uint64_t guest, const uint64_t *words, size_t count,
                  uint64_t *out);

/* Release one pin of each frame. guest: guest id. words: physical page addresses, as PIN_PAGES
 * returned them. */
int app_unpin_pages(struct app *app, uint64_t guest, const uint64_t *words, size_t count);

/* Copy from a page that is pinned for the guest. guest: guest id; pa: physical address; length:
 * bytes, 1 to 4096, inside one page. out: length bytes. */
int app_read_pinned(struct app *app, uint64_t guest, uint64_t pa, uint64_t length, void *out);

/* Write into a page that is pinned for the guest, all segments or none. guest: guest id; pa:
 * physical address, low 12 bits zero; count: segments, 0 to MAX_SEGMENTS. */
int app_write_pinned(struct app *app, uint64_t guest, uint64_t pa,
                     const struct app_segment *segments, size_t count);

/* Zeroed pages of the arena that no guest can reach and the TEE can. NO: none left. pages:
 * pages, at least 1; offset: byte of the arena where the pages lie, one after the other. out:
 * pages words; physical page addresses. */
int app_alloc_shadow(struct app *app, uint64_t pages, uint64_t *offset, uint64_t *out);

/* Give shadow pages back, all of one allocation. words: physical page addresses, as ALLOC_SHADOW
 * returned them. */
int app_free_shadow(struct app *app, const uint64_t *words, size_t count);

/* Execute an SMC towards the secure world. x7 is the client id of the entry's guest, or 0 for
 * the hypervisor's own calls: CALLS_UID, GET_THREAD_COUNT and VM_DESTROYED of client 0 in INIT;
 * VM_CREATED and VM_DESTROYED of the entry's guest in its life-cycle entries. */
int app_smc(struct app *app, const uint64_t x[8], uint64_t results[4]);

/* Whether long work should stop here and be entered again. preempt: 1: stop. */
int app_should_preempt(struct app *app, uint64_t *preempt);

/* Make an interrupt pending for a guest. guest: guest id; intid: interrupt id. */
int app_inject_virq(struct app *app, uint64_t guest, uint64_t intid);

/* Virtual time. now: ns. */
int app_now(struct app *app, uint64_t *now);

/* Ask for HANDLE_TIMER. Needs a TIMER hook. deadline: ns; cancel: 1: no deadline. */
int app_set_timer(struct app *app, uint64_t deadline, uint64_t cancel);

/* Where shadow pages lie that this app or one before it allocated. offset: byte of the arena.
 * words: physical page addresses, as ALLOC_SHADOW returned them. */
int app_map_shadow(struct app *app, const uint64_t *words, size_t count, uint64_t *offset);

/* The TEE did not let go of the guest: keep its pages and its id. guest: guest id; answer: x0 of
 * VM_DESTROYED. */
int app_quarantine(struct app *app, uint64_t guest, uint64_t answer);

/* Let a vCPU rest after this trap. guest: guest id; vcpu: index; until: ns. */
int app_park_vcpu(struct app *app, uint64_t guest, uint64_t vcpu, uint64_t until);

/* End the rest of a vCPU, if it rests. guest: guest id; vcpu: index. */
int app_wake_vcpu(struct app *app, uint64_t guest, uint64_t vcpu);

/* Enter this app for a range of events. The manifest must have the range. kind: number of a
 * [[hook]]; first: see the hook; last: see the hook, inclusive. */
int app_register_hook(struct app *app, uint64_t kind, uint64_t first, uint64_t last);

/* A guest page as memory of the app until UNMAP_GUEST_PAGE or the end of the entry: a window of
 * the arena that is copied in whenever the app is entered or answered and back whenever it
 * speaks. NO unless it is the guest's own read-write RAM. guest: guest id; ipa: guest physical
 * address, low 12 bits zero; offset: byte of the arena. */
int app_map_guest_page(struct app *app, uint64_t guest, uint64_t ipa, uint64_t *offset);

/* End a window of MAP_GUEST_PAGE or MAP_DEVICE. offset: byte of the arena. */
int app_unmap_guest_page(struct app *app, uint64_t offset);

/* One page of a device's registers as memory of the app, as MAP_GUEST_PAGE. The manifest must
 * have the range. pa: physical address, low 12 bits zero; offset: byte of the arena. */
int app_map_device(struct app *app, uint64_t pa, uint64_t *offset);

/* Reprogram the simulated IOMMU: map (or unmap) one page for a device that belongs to the guest.
 * The frame must be pinned for the guest by this app. guest: guest id; stream: stream id of the
 * device; the manifest must have it; iova: device virtual address, low 12 bits zero; pa:
 * physical page address; ignored if unmapped; access: 0: unmap, 1: read, 3: read and write. */
int app_iommu(struct app *app, uint64_t guest, uint64_t stream, uint64_t iova, uint64_t pa,
              uint64_t access);

/* READ_PAGE_LIST, PIN_PAGES and SHOULD_PREEMPT in one, step by step, until all entries are
 * pinned, a step is refused, or the hypervisor wants to stop (flag PREEMPT, OK). What was pinned
 * before stays pinned. guest: guest id; ipa: first list page, low 12 bits ignored; entries:
 * words, 1 to MAX_PAGES; step: words read and pinned between two questions whether to stop, a
 * multiple of 511; link: word 511 of the last page read, 0 if the entries ended before it;
 * pinned: entries that are pinned now. out: room for entries words, of which *pinned are filled;
 * for each pinned entry the physical page address, with the low 12 bits of the list's entry. */
int app_read_and_pin(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries, uint64_t step,
                     uint64_t *link, uint64_t *pinned, uint64_t *out);

/* An event of the app for a recorder, if the hypervisor offered to listen. json: an array: name
 * of the event, then its fields. */
int app_trace(struct app *app, const char *json, size_t length);

/* WRITE_GUEST as the last thing before the RETURN of HANDLE_SMC, without a round trip of its
 * own: if it is refused, x0 of the RETURN becomes refused_x0. guest: guest id; ipa: guest
 * physical address, low 12 bits zero; count: segments, 0 to MAX_SEGMENTS; refused_x0: register. */
int app_write_result(struct app *app, uint64_t guest, uint64_t ipa, uint64_t refused_x0,
                     const struct app_segment *segments, size_t count);

/* READ_AND_PIN whose words are put into the arena, as a page list: 511 words to a page, word 511
 * of each page stays as it is. There must be room for all entries. guest: guest id; ipa: first
 * list page, low 12 bits ignored; entries: words, 1 to MAX_PAGES; step: words read and pinned
 * between two questions whether to stop, a multiple of 511; offset: byte of the arena for the
 * first page, behind the windows, low 12 bits zero; link: word 511 of the last page read, 0 if
 * the entries ended before it; pinned: entries that are pinned now, and stand in the arena; low:
 * whether any of them has one of the low 12 bits. */
int app_pin_list(struct app *app, uint64_t guest, uint64_t ipa, uint64_t entries, uint64_t step,
                 uint64_t offset, uint64_t *link, uint64_t *pinned, uint64_t *low);

#ifdef __cplusplus
}
#endif

#endif
