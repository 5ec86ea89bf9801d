/* SPDX-License-Identifier: BSD-2-Clause */
/* A small OP-TEE mediator as an app: what its parts share.
 *
 * It serves what a probe and sessions need: identity, capabilities, calls with a message by address
 * or in registered memory, buffers of up to one list page, RPCs. It offers no notifications, no
 * contiguous temporary buffers and no state to save. Entries come one after the other (no NESTING),
 * so that nothing changes while a service is asked for; what outlives an entry is a record here.
 * All memory is static.
 */
#ifndef MINI_H
#define MINI_H

#include <stddef.h>
#include <stdint.h>

#include "optee_app.h"
#include "optee_numbers.h"

#define GUESTS 8
#define CALLS 16         /* in flight or suspended, of a guest */
#define BUFFERS 64       /* of a guest */
#define BUFFER_PAGES 511 /* what one list page has room for */
#define TOTAL_PAGES 4096 /* of all buffers of a guest */
#define RPC_BUFFERS 16   /* of a guest */
#define FREE_PAGES 64    /* shadow pages that are kept for the next call */
#define FINDINGS 32      /* of a guest that reach the log */
#define REFUSED_REQUESTS 16 /* in a row before the guest gets its processor back */
#define FIRST_OWN_THREAD 0x10000 /* a TEE has far fewer threads */

#define LIST_ENTRIES 511
#define MESSAGE_HEADER 32
#define PARAM 32
#define MAX_PARAMS 127
#define FIRST_READ (MESSAGE_HEADER + 6 * PARAM)

/* Offsets in a message (optee_msg.h, struct optee_msg_arg) and in a parameter. */
#define AT_CMD 0
#define AT_SESSION 8
#define AT_RET 20
#define AT_RET_ORIGIN 24
#define AT_NUM_PARAMS 28
#define AT_ATTR 0
#define AT_A 8
#define AT_B 16
#define AT_C 24

#define LOW 0xffffffffu

/* A page of the arena: where the TEE finds it, and where we do. */
struct shadow {
    uint64_t pa;
    unsigned char *mem; /* null: none */
};

enum kind { REGISTERED, TEMPORARY, RPC_ALLOCATED };

/* Guest pages that are shared with the TEE under a reference. */
struct buffer {
    int used;
    int named;   /* the reference is taken */
    int live;    /* the TEE has it */
    int given;   /* the TEE may have it */
    int doomed;  /* goes when its last user goes, or when the REGISTER that made it comes back */
    int lingers; /* released, but a call in flight names the reference */
    unsigned users; /* calls whose message lies here */
    enum kind kind;
    uint64_t reference;
    uint64_t list_ipa;
    uint32_t offset;
    uint32_t pages;
    uint32_t pinned;
    struct shadow list;
    uint64_t frames[BUFFER_PAGES];
};

/* A guest page for RPC messages, and ours that the TEE uses instead. */
struct rpc_buffer {
    int used;
    uint64_t serial;
    uint64_t cookie;
    uint64_t ipa;
    uint64_t frame;
    uint32_t thread;
    struct shadow shadow;
};

/* A field of an event; none: -1. */
struct word {
    uint64_t value;
    int none;
};
#define WORD(x) ((struct word){(x), 0})
#define NO_WORD ((struct word){0, 1})

/* A yielding call in flight. What was asked is noted here and decides everything later. */
struct call {
    int used;
    int told; /* the recorder knows it */
    uint64_t serial;
    uint32_t function;
    uint32_t command;
    struct shadow shadow;
    struct buffer *carrier; /* the message lies in it, at position; else at page */
    uint32_t position;
    uint64_t page;
    uint32_t size;
    uint32_t rpc_at; /* where the RPC argument lies behind the message; 0: in buffers of its own */
    uint32_t rpc_room;
    unsigned char types[MAX_PARAMS]; /* of the parameters, as the guest gave them */
    uint64_t target; /* reference that UNREGISTER is about */
    int has_target;
    struct buffer *walk;
    struct buffer *buffers[MAX_PARAMS];
    uint32_t buffer_count;
    uint64_t named[MAX_PARAMS];
    uint32_t named_count;
    struct shadow alloc_list; /* what the TEE was given for its last SHM_ALLOC */

    int suspended;
    uint32_t thread;
    uint32_t rpc_function;
    uint64_t rpc_a1, rpc_a2;
    struct rpc_buffer *rpc_buffer;
    uint64_t rpc_serial;
    uint32_t request; /* command of the RPC, valid for RPC_CMD */
    uint64_t shm_type;
    int own_free;     /* our own SHM_FREE is out: the allocation failed */
    int has_refused;  /* cookie of an answer to ALLOC that was refused */
    uint64_t refused;
    int has_empty;    /* reference of an answer to SHM_ALLOC without memory */
    uint64_t empty;
};

struct guest {
    int used;
    int dying;
    uint64_t id;
    uint64_t client;
    uint32_t rpc_params;
    uint32_t pages;
    uint32_t findings;
    uint64_t rpc_serial;
    uint64_t call_serial;
    struct call calls[CALLS];
    struct buffer buffers[BUFFERS];
    struct rpc_buffer rpc_buffers[RPC_BUFFERS];
};

struct mini {
    struct app app;
    uint64_t vcpu; /* that is served now */
    struct guest guests[GUESTS];
    struct shadow free_pages[FREE_PAGES];
    size_t free_count;
    unsigned char page[APP_PAGE]; /* the one snapshot of a guest's message */
};

/* Little-endian words at any address. */
uint32_t get32(const unsigned char *from);
uint64_t get64(const unsigned char *from);
void put32(unsigned char *to, uint32_t value);
void put64(unsigned char *to, uint64_t value);
uint64_t pair(uint64_t high, uint64_t low);

/* Everything below returns APP_OK or a negative status of the channel, unless it says otherwise. */

/* trace.c: what a recorder is told. */
int recorded(const struct mini *mini);
int trace(struct mini *mini, const char *name, const struct word *words, size_t count,
          const uint64_t *registers, size_t register_count);
int trace_finding(struct mini *mini, const struct guest *guest, const char *text);

/* records.c: what is taken and given back. */
int finding(struct mini *mini, struct guest *guest, const char *text);
int take_page(struct mini *mini, struct shadow *page); /* APP_NO: none left */
int give_page(struct mini *mini, struct shadow *page);
struct buffer *find_buffer(struct guest *guest, uint64_t reference);
struct rpc_buffer *find_rpc_buffer(struct guest *guest, uint64_t cookie);
int names(const struct guest *guest, uint64_t reference, const struct call *but);
uint32_t reserve(struct guest *guest, enum kind kind, uint64_t address, uint64_t size,
                 uint64_t reference, struct buffer **out); /* 0 or a TEE error */
int walk(struct mini *mini, struct guest *guest, struct buffer *buffer, uint32_t *result);
int let_go(struct mini *mini, struct guest *guest, struct buffer *buffer);
int release_buffer(struct mini *mini, struct guest *guest, struct buffer *buffer,
                   const struct call *call);
int release_buffers(struct mini *mini, struct guest *guest, struct call *call);
int release_rpc_buffer(struct mini *mini, struct guest *guest, struct rpc_buffer *buffer);
int release_call(struct mini *mini, struct guest *guest, struct call *call);
int drop_call(struct mini *mini, struct guest *guest, struct call *call);

/* place.c: where a message lies. */
int read_message(struct mini *mini, struct guest *guest, const struct call *call, uint32_t from,
                 unsigned char *to, uint32_t length); /* APP_NO: not readable any more */
int write_message(struct mini *mini, struct guest *guest, const struct call *call, uint32_t base,
                  const struct app_segment *segments, size_t count); /* APP_NO: not writable */

/* rpc.c: rounds through the guest. */
enum leaving { TO_GUEST, ENTER_AGAIN, BROKEN };
int leave(struct mini *mini, struct guest *guest, struct call *call, const uint64_t answer[4],
          enum leaving *how);
int allocated(struct mini *mini, struct guest *guest, struct call *call, const uint64_t x[8],
              uint64_t *pa);
int answer_in(struct mini *mini, struct guest *guest, struct call *call, uint64_t x[8],
              int *again);

/* calls.c: the yielding calls. x: registers in and out. */
int call_by_address(struct mini *mini, struct guest *guest, uint64_t x[8], uint32_t function);
int call_by_cookie(struct mini *mini, struct guest *guest, uint64_t x[8]);
int return_from_rpc(struct mini *mini, struct guest *guest, uint64_t x[8]);

#endif
