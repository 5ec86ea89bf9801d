/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads golden messages and the fields that optee-mediator finds in them, and checks both ways that
 * the C structures agree: octets seen through the structure give the fields, and a structure filled
 * with the fields gives the octets. Little-endian machines only, as is the ABI.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "constants.h"
#include "optee_abi.h"

#define MAX_PARAMS 6
#define MAX_BYTES (sizeof(struct message) + MAX_PARAMS * sizeof(struct param))

static_assert(OPTEE_MSG_NONCONTIG_PAGE_SIZE == sizeof(struct page_list), "page size");
static_assert(OPTEE_SMC_RETURN_RPC_CMD == 0xffff0005u, "RPC_CMD as recorded");
static_assert(2 * MAX_BYTES < 512, "room for the octets as text");
static_assert(OPTEE_SMC_CALL_WITH_ARG == 0x32000004u, "CALL_WITH_ARG as recorded");

union storage {
	unsigned char bytes[MAX_BYTES];
	struct message message;
};

static const struct {
	const char *name;
	size_t offset;
} header[] = {
	{ "cmd", offsetof(struct message, cmd) },
	{ "func", offsetof(struct message, func) },
	{ "session", offsetof(struct message, session) },
	{ "cancel_id", offsetof(struct message, cancel_id) },
	{ "pad", offsetof(struct message, pad) },
	{ "ret", offsetof(struct message, ret) },
	{ "ret_origin", offsetof(struct message, ret_origin) },
	{ "num_params", offsetof(struct message, num_params) },
};

static unsigned long failures;

static void expect(const char *message, const char *field, uint64_t expected, uint64_t found)
{
	if (expected == found)
		return;
	printf("%s: %s: expected %" PRIu64 ", found %" PRIu64 "\n", message, field, expected, found);
	failures++;
}

static int digit(int c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

static size_t from_hex(const char *hex, unsigned char *out, size_t room)
{
	size_t count = 0;

	while (hex[0] && hex[1] && count < room) {
		int high = digit(hex[0]), low = digit(hex[1]);

		if (high < 0 || low < 0)
			return 0;
		out[count++] = (unsigned char)(high << 4 | low);
		hex += 2;
	}
	return *hex ? 0 : count;
}

static bool read_number(FILE *file, const char *name, uint64_t *value)
{
	char word[32];

	return fscanf(file, " %31s %" SCNu64, word, value) == 2 && !strcmp(word, name);
}

static bool check_message(FILE *file)
{
	static union storage golden, built;
	char name[64], hex[512], word[16];
	size_t size;

	if (fscanf(file, " %63s %511s", name, hex) != 2)
		return false;
	memset(&golden, 0, sizeof(golden));
	memset(&built, 0, sizeof(built));
	size = from_hex(hex, golden.bytes, sizeof(golden.bytes));
	if (size < sizeof(struct message))
		return false;

	for (size_t i = 0; i < sizeof(header) / sizeof(header[0]); i++) {
		uint64_t value;
		uint32_t want, have;

		if (!read_number(file, header[i].name, &value))
			return false;
		memcpy(&have, golden.bytes + header[i].offset, sizeof(have));
		expect(name, header[i].name, value, have);
		want = (uint32_t)value;
		memcpy(built.bytes + header[i].offset, &want, sizeof(want));
	}
	if (built.message.num_params > MAX_PARAMS)
		return false;
	expect(name, "size", sizeof(struct message) +
	       built.message.num_params * sizeof(struct param), size);
	for (uint32_t i = 0; i < built.message.num_params; i++) {
		struct param *want = &built.message.params[i];
		const struct param *have = &golden.message.params[i];

		if (fscanf(file, " %15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, word,
			   &want->attr, &want->a, &want->b, &want->c) != 5)
			return false;
		expect(name, "attr", want->attr, have->attr);
		expect(name, "a", want->a, have->a);
		expect(name, "b", want->b, have->b);
		expect(name, "c", want->c, have->c);
	}
	if (memcmp(&golden, &built, sizeof(golden))) {
		printf("%s: built differently\n", name);
		failures++;
	}
	return fscanf(file, " %15s", word) == 1 && !strcmp(word, "end");
}

int main(int argc, char **argv)
{
	unsigned long count = 0;
	char word[16];
	FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;

	if (!file) {
		fprintf(stderr, "usage: check_abi FILE\n");
		return 2;
	}
	while (fscanf(file, " %15s", word) == 1) {
		if (strcmp(word, "message") || !check_message(file)) {
			fprintf(stderr, "%s: message %lu cannot be read\n", argv[1], count + 1);
			return 2;
		}
		count++;
	}
	fclose(file);
	printf("%lu messages, %lu differences\n", count, failures);
	return !count || failures ? 1 : 0;
}
