/* SPDX-License-Identifier: BSD-2-Clause */
/* The message of OP-TEE as this mediator declares it: natural alignment, no packing, no padding. */
#ifndef OPTEE_ABI_H
#define OPTEE_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

struct param {
	uint64_t attr;
	uint64_t a;
	uint64_t b;
	uint64_t c;
};

struct message {
	uint32_t cmd;
	uint32_t func;
	uint32_t session;
	uint32_t cancel_id;
	uint32_t pad;
	uint32_t ret;
	uint32_t ret_origin;
	uint32_t num_params;
	struct param params[];
};

#define PAGE_ENTRIES 511

struct page_list {
	uint64_t pages[PAGE_ENTRIES];
	uint64_t next;
};

static_assert(sizeof(struct param) == 32, "a parameter has 32 bytes");
static_assert(sizeof(struct message) == 32, "the header has 32 bytes");
static_assert(offsetof(struct message, params) == 32, "no padding before the parameters");
static_assert(sizeof(struct page_list) == 4096, "a list page is one page");

#endif
