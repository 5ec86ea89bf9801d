/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The built-in client of a live guest: every kind of call a libteec program makes, each one a test of
 * its own. Prints a line for each, which mediator/live/workload.py reads:
 *   @@ <test> ok|fail|skip <microseconds> <detail>
 * Arguments: names of tests; without any, all but "bench". $again goes before the names that are printed.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <tee_client_api.h>

#define PTA(last) { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, last } }
static const TEEC_UUID arithmetic = PTA(0x01), memory = PTA(0x02), locker = PTA(0x03);
static const TEEC_UUID clock_ta = PTA(0x04), panicker = PTA(0x05), notifier = PTA(0x06);
static const TEEC_UUID nobody = PTA(0xff);
static const TEEC_UUID echo = { 0x7a3b9a4e, 0x5c1d, 0x4f0e,
                                { 0x9a, 0x55, 0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a } };
static const TEEC_UUID storage = { 0xc0a6b1f2, 0x93d7, 0x4e0c,
                                   { 0x8d, 0x55, 0x7f, 0x1b, 0x0a, 0x64, 0xe2, 0xc9 } };

static TEEC_Context context;
static char detail[200];
static int skipped;

/* Remember what went wrong first; the value of a failed test. */
static int wrong(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(detail, sizeof detail, format, list);
    va_end(list);
    return 0;
}

#define CHECK(condition) \
    do { if (!(condition)) return wrong("line %d: %s", __LINE__, #condition); } while (0)
#define OK(call) \
    do { TEEC_Result r_ = (call); \
         if (r_) return wrong("line %d: %#x origin %u", __LINE__, r_, origin); } while (0)
#define IS(call, code) \
    do { TEEC_Result r_ = (call); \
         if (r_ != (code)) return wrong("line %d: %#x, not %#x", __LINE__, r_, (unsigned)(code)); } while (0)

static TEEC_Result begin(TEEC_Session *session, const TEEC_UUID *uuid, uint32_t *origin)
{
    return TEEC_OpenSession(&context, session, uuid, TEEC_LOGIN_PUBLIC, NULL, NULL, origin);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static int test_sessions(void)
{
    TEEC_Session many[20];
    uint32_t origin = 0;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20; i++)
            OK(begin(&many[i], &arithmetic, &origin));
        for (int i = 0; i < 20; i++)
            TEEC_CloseSession(&many[i]);
    }
    IS(begin(&many[0], &nobody, &origin), TEEC_ERROR_ITEM_NOT_FOUND);
    return 1;
}

static int test_values(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    OK(begin(&s, &arithmetic, &origin));
    for (uint32_t i = 0; i < 50; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
        op.params[0].value.a = 0xfffffff0u + i;
        op.params[0].value.b = 3 * i;
        OK(TEEC_InvokeCommand(&s, 0, &op, &origin));
        uint64_t sum = (uint64_t)(0xfffffff0u + i) + 3 * i;
        CHECK(op.params[1].value.a == (uint32_t)sum && op.params[1].value.b == sum >> 32);
    }
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
    op.params[0].value.a = 1; /* by zero */
    IS(TEEC_InvokeCommand(&s, 3, &op, &origin), TEEC_ERROR_BAD_PARAMETERS);
    CHECK(origin == TEEC_ORIGIN_TRUSTED_APP);
    IS(TEEC_InvokeCommand(&s, 99, &op, &origin), TEEC_ERROR_NOT_SUPPORTED);
    TEEC_CloseSession(&s);
    return 1;
}

static int test_temporary(void)
{
    static const size_t sizes[] = { 1, 8, 64, 4095, 4096, 4097, 70000, 1 << 20 };
    TEEC_Session s;
    uint32_t origin = 0;
    unsigned char *data = malloc(1 << 20), *copy = malloc(1 << 20);
    OK(begin(&s, &memory, &origin));
    for (unsigned n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        size_t size = sizes[n];
        uint32_t sum = 0;
        for (size_t i = 0; i < size; i++)
            sum += data[i] = (unsigned char)(i * 7 + n);
        TEEC_Operation in = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
        in.params[0].tmpref.buffer = data;
        in.params[0].tmpref.size = size;
        OK(TEEC_InvokeCommand(&s, 0, &in, &origin));
        CHECK(in.params[1].value.a == sum && in.params[1].value.b == size);
        TEEC_Operation both = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_MEMREF_TEMP_OUTPUT, 0, 0) };
        both.params[0] = in.params[0];
        both.params[1].tmpref.buffer = copy;
        both.params[1].tmpref.size = 1 << 20;
        memset(copy, 0, size);
        OK(TEEC_InvokeCommand(&s, 3, &both, &origin));
        CHECK(both.params[1].tmpref.size == size && !memcmp(data, copy, size));
        TEEC_Operation inout = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INOUT, 0, 0, 0) };
        inout.params[0].tmpref.buffer = copy;
        inout.params[0].tmpref.size = size;
        OK(TEEC_InvokeCommand(&s, 2, &inout, &origin));
        for (size_t i = 0; i < size; i++)
            CHECK(copy[i] == data[size - 1 - i]);
    }
    TEEC_Operation fill = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_OUTPUT, TEEC_VALUE_INPUT, 0, 0) };
    fill.params[0].tmpref.buffer = copy;
    fill.params[0].tmpref.size = 10;
    fill.params[1].value.a = 0x5a;
    fill.params[1].value.b = 100;
    IS(TEEC_InvokeCommand(&s, 1, &fill, &origin), TEEC_ERROR_SHORT_BUFFER);
    CHECK(fill.params[0].tmpref.size == 100);
    OK(TEEC_InvokeCommand(&s, 1, &fill, &origin));
    CHECK(fill.params[0].tmpref.size == 100 && copy[0] == 0x5a && copy[99] == 0x5a);
    TEEC_CloseSession(&s);
    free(data);
    free(copy);
    return 1;
}

static int test_null(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    static const uint32_t kinds[] = { TEEC_MEMREF_TEMP_INPUT, TEEC_MEMREF_TEMP_OUTPUT, TEEC_MEMREF_TEMP_INOUT };
    OK(begin(&s, &memory, &origin));
    for (int i = 0; i < 3; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(kinds[i], TEEC_VALUE_OUTPUT, 0, 0) };
        OK(TEEC_InvokeCommand(&s, 4, &op, &origin));
        CHECK(op.params[1].value.a == 1 && op.params[1].value.b == 0);
    }
    TEEC_CloseSession(&s);
    return 1;
}

static int test_shared(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    TEEC_SharedMemory own = { .size = 3 * 4096, .flags = TEEC_MEM_INPUT | TEEC_MEM_OUTPUT };
    unsigned char *base = malloc(20000);
    TEEC_SharedMemory given = { .buffer = base + 123, .size = 10000, .flags = TEEC_MEM_INPUT | TEEC_MEM_OUTPUT };
    OK(begin(&s, &memory, &origin));
    OK(TEEC_AllocateSharedMemory(&context, &own));
    OK(TEEC_RegisterSharedMemory(&context, &given));
    memset(own.buffer, 1, own.size);
    memset(given.buffer, 2, given.size);
    TEEC_Operation whole = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_WHOLE, TEEC_VALUE_OUTPUT, 0, 0) };
    whole.params[0].memref.parent = &own;
    IS(TEEC_InvokeCommand(&s, 0, &whole, &origin), TEEC_ERROR_BAD_PARAMETERS); /* it is an inout */
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_PARTIAL_INPUT, TEEC_MEMREF_PARTIAL_OUTPUT, 0, 0) };
    op.params[0].memref.parent = &own;
    op.params[0].memref.offset = 4000;
    op.params[0].memref.size = 5000;
    op.params[1].memref.parent = &given;
    op.params[1].memref.offset = 77;
    op.params[1].memref.size = 6000;
    for (int i = 0; i < 20; i++)
        OK(TEEC_InvokeCommand(&s, 3, &op, &origin));
    CHECK(op.params[1].memref.size == 5000);
    unsigned char *out = given.buffer;
    CHECK(out[76] == 2 && out[77] == 1 && out[5076] == 1 && out[5077] == 2);
    TEEC_ReleaseSharedMemory(&own);
    TEEC_ReleaseSharedMemory(&given);
    TEEC_CloseSession(&s);
    free(base);
    return 1;
}

static int test_load(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    char text[16] = "abcdefghijklmno";
    for (int round = 0; round < 3; round++) {
        OK(begin(&s, &echo, &origin));
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INOUT, TEEC_VALUE_OUTPUT,
                                                             TEEC_MEMREF_TEMP_INOUT, TEEC_NONE) };
        op.params[0].value.a = 41;
        op.params[0].value.b = 5;
        op.params[2].tmpref.buffer = text;
        op.params[2].tmpref.size = sizeof text;
        OK(TEEC_InvokeCommand(&s, 1, &op, &origin));
        CHECK(op.params[0].value.a == 42 && op.params[0].value.b == 7);
        CHECK(op.params[1].value.a == 0xa1 && op.params[1].value.b == 0xb1);
        CHECK((unsigned char)text[0] == (unsigned char)(round % 2 ? 'a' : ~'a'));
        TEEC_CloseSession(&s);
    }
    return 1;
}

static int test_panic(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    OK(begin(&s, &panicker, &origin));
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = 7;
    IS(TEEC_InvokeCommand(&s, 0, &op, &origin), TEEC_ERROR_TARGET_DEAD);
    IS(TEEC_InvokeCommand(&s, 3, NULL, &origin), TEEC_ERROR_TARGET_DEAD);
    TEEC_CloseSession(&s);
    OK(begin(&s, &panicker, &origin));
    OK(TEEC_InvokeCommand(&s, 3, NULL, &origin));
    TEEC_CloseSession(&s);
    return 1;
}

static int test_storage(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    char name[] = "live object", data[5000], back[5000];
    TEEC_Result r = begin(&s, &storage, &origin);
    if (r == TEEC_ERROR_NOT_SUPPORTED) {
        skipped = 1;
        return wrong("the secure world has no cryptography");
    }
    OK(r);
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (char)(i ^ i >> 8);
    TEEC_Operation create = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_INOUT,
                                                             TEEC_VALUE_INPUT, TEEC_MEMREF_TEMP_INPUT) };
    create.params[0].tmpref.buffer = name;
    create.params[0].tmpref.size = sizeof name;
    create.params[1].value.a = 7 | 0x400; /* read, write, meta, overwrite */
    create.params[2].value.a = 1;
    create.params[3].tmpref.buffer = data;
    create.params[3].tmpref.size = sizeof data;
    OK(TEEC_InvokeCommand(&s, 4, &create, &origin));
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = create.params[1].value.b;
    OK(TEEC_InvokeCommand(&s, 1, &op, &origin));
    TEEC_Operation open = create;
    open.paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_INOUT, TEEC_VALUE_INPUT, 0);
    open.params[1].value.a = 7;
    OK(TEEC_InvokeCommand(&s, 0, &open, &origin));
    TEEC_Operation get = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_OUTPUT, TEEC_VALUE_INOUT, 0, 0) };
    get.params[0].tmpref.buffer = back;
    get.params[0].tmpref.size = sizeof back;
    get.params[1].value.a = open.params[1].value.b;
    OK(TEEC_InvokeCommand(&s, 2, &get, &origin));
    CHECK(!memcmp(data, back, sizeof data));
    op.params[0].value.a = open.params[1].value.b;
    OK(TEEC_InvokeCommand(&s, 6, &op, &origin)); /* unlink closes, too */
    open.params[1].value.a = 7;
    IS(TEEC_InvokeCommand(&s, 0, &open, &origin), TEEC_ERROR_ITEM_NOT_FOUND);
    TEEC_CloseSession(&s);
    return 1;
}

static int test_slow(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    OK(begin(&s, &clock_ta, &origin));
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = 100;     /* steps */
    op.params[0].value.b = 1000000; /* of a millisecond each */
    double before = seconds();
    OK(TEEC_InvokeCommand(&s, 0, &op, &origin));
    double took = seconds() - before;
    CHECK(took > 0.09);
    TEEC_CloseSession(&s);
    return 1;
}

static int test_time(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    struct timespec now;
    OK(begin(&s, &clock_ta, &origin));
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_OUTPUT, 0, 0, 0) };
    OK(TEEC_InvokeCommand(&s, 2, &op, &origin));
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(now.tv_sec - (long)op.params[0].value.a <= 2);
    op.paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0);
    op.params[0].value.a = 60;
    double before = seconds();
    OK(TEEC_InvokeCommand(&s, 1, &op, &origin));
    CHECK(seconds() - before > 0.05);
    TEEC_CloseSession(&s);
    return 1;
}

static TEEC_Operation cancelled;
static void *cancel(void *unused)
{
    usleep(20000);
    TEEC_RequestCancellation(&cancelled);
    return unused;
}

static int test_cancel(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    pthread_t thread;
    OK(begin(&s, &clock_ta, &origin));
    cancelled.paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0);
    cancelled.params[0].value.a = 10000; /* ms: busy machines cancel late */
    cancelled.params[0].value.b = 1000000;
    pthread_create(&thread, NULL, cancel, NULL);
    TEEC_Result r = TEEC_InvokeCommand(&s, 0, &cancelled, &origin);
    pthread_join(thread, NULL);
    IS(r, TEEC_ERROR_CANCEL);
    TEEC_CloseSession(&s);
    return 1;
}

#define WORKERS 6
static void *work(void *argument)
{
    int number = (int)(intptr_t)argument;
    TEEC_Session s;
    uint32_t origin;
    intptr_t failed = 0;
    if (begin(&s, number % 2 ? &locker : &memory, &origin))
        return (void *)1;
    for (int i = 0; i < 10 && !failed; i++) {
        unsigned char data[3000];
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
        if (number % 2) { /* hold lock 0 for some steps: the others wait in the normal world */
            op.params[0].value.a = i % 5 ? 100 : 5; /* steps, or milliseconds asleep */
            failed = TEEC_InvokeCommand(&s, i % 5 ? 0 : 2, &op, &origin) != 0;
            continue;
        }
        memset(data, number + i, sizeof data);
        op.paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_OUTPUT, 0, 0);
        op.params[0].tmpref.buffer = data;
        op.params[0].tmpref.size = sizeof data;
        failed = TEEC_InvokeCommand(&s, 0, &op, &origin) ||
                 op.params[1].value.a != (uint32_t)(number + i) * sizeof data;
    }
    TEEC_CloseSession(&s);
    return (void *)failed;
}

static int test_concurrent(void)
{
    pthread_t threads[WORKERS];
    void *failed;
    int failures = 0;
    for (int i = 0; i < WORKERS; i++)
        pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i);
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], &failed);
        failures += failed != NULL;
    }
    CHECK(failures == 0);
    return 1;
}

/* Interrupts that the driver has taken, on all processors; -1 without such a line. */
static long interrupts(void)
{
    char line[400];
    long sum = -1;
    FILE *file = fopen("/proc/interrupts", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (!strstr(line, "optee"))
            continue;
        char *at = strchr(line, ':'), *end;
        for (sum = 0, at++;; at = end) {
            long count = strtol(at, &end, 10);
            if (end == at)
                break;
            sum += count;
        }
    }
    if (file)
        fclose(file);
    return sum;
}

/* Whether the driver takes another interrupt within five seconds. */
static int interrupted(long before)
{
    for (int i = 0; i < 1000; i++) {
        if (interrupts() > before)
            return 1;
        usleep(5000);
    }
    return 0;
}

/* The secure world sends a value, a number of times, after some milliseconds. */
static TEEC_Result notify(TEEC_Session *s, uint32_t value, uint32_t after, uint32_t times, uint32_t gap)
{
    uint32_t origin;
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, TEEC_VALUE_INPUT, 0, 0) };
    op.params[0].value.a = value;
    op.params[0].value.b = after;
    op.params[1].value.a = times;
    op.params[1].value.b = gap;
    return TEEC_InvokeCommand(s, 0, &op, &origin);
}

static void *wait_value(void *argument)
{
    TEEC_Session s;
    uint32_t origin;
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = (uint32_t)(intptr_t)argument;
    op.params[0].value.b = 10; /* ms until it is sent */
    if (begin(&s, &notifier, &origin))
        return (void *)1;
    TEEC_Result r = TEEC_InvokeCommand(&s, 1, &op, &origin);
    TEEC_CloseSession(&s);
    return (void *)(intptr_t)(r != 0);
}

static int test_notify(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    pthread_t threads[3];
    void *failed;
    int failures = 0;
    OK(begin(&s, &notifier, &origin));
    long before = interrupts();
    if (before < 0) {
        IS(notify(&s, 0, 0, 1, 0), TEEC_ERROR_NOT_SUPPORTED);
        TEEC_CloseSession(&s);
        skipped = 1;
        return wrong("the driver has not enabled notifications");
    }
    OK(notify(&s, 0, 0, 1, 0)); /* in the call: a bottom half */
    CHECK(interrupted(before));
    before = interrupts();
    OK(notify(&s, 0, 20, 1, 0)); /* while the guest is idle */
    CHECK(interrupted(before));
    before = interrupts();
    OK(notify(&s, 0, 1, 5, 4)); /* bottom halves while there are calls, and waits for other values */
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, wait_value, (void *)(intptr_t)(20 + i));
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], &failed);
        failures += failed != NULL;
    }
    CHECK(failures == 0);
    CHECK(interrupts() > before);
    TEEC_CloseSession(&s);
    snprintf(detail, sizeof detail, "%ld interrupts", interrupts());
    return 1;
}

/* A lock of the whole TEE: guests wait for each other. */
static void *hold_shared(void *argument)
{
    TEEC_Session s;
    uint32_t origin;
    intptr_t failed = 0;
    if (begin(&s, &locker, &origin))
        return (void *)1;
    for (int i = 0; i < 6 && !failed; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
        int asleep = (i + (int)(intptr_t)argument) % 3 == 0;
        op.params[0].value.a = asleep ? 2 : 50; /* milliseconds, or steps of 20 microseconds */
        failed = TEEC_InvokeCommand(&s, asleep ? 3 : 1, &op, &origin) != 0;
    }
    TEEC_CloseSession(&s);
    return (void *)failed;
}

static int test_everyones(void)
{
    pthread_t threads[2];
    void *failed;
    int failures = 0;
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, hold_shared, (void *)(intptr_t)i);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], &failed);
        failures += failed != NULL;
    }
    CHECK(failures == 0);
    return 1;
}

static int test_bench(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    unsigned char data[64] = { 0 };
    double before, values, buffers;
    const int rounds = 500;
    OK(begin(&s, &arithmetic, &origin));
    before = seconds();
    for (int i = 0; i < rounds; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
        OK(TEEC_InvokeCommand(&s, 0, &op, &origin));
    }
    values = rounds / (seconds() - before);
    TEEC_CloseSession(&s);
    OK(begin(&s, &memory, &origin));
    before = seconds();
    for (int i = 0; i < rounds; i++) {
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
        op.params[0].tmpref.buffer = data;
        op.params[0].tmpref.size = sizeof data;
        OK(TEEC_InvokeCommand(&s, 0, &op, &origin));
    }
    buffers = rounds / (seconds() - before);
    TEEC_CloseSession(&s);
    snprintf(detail, sizeof detail, "%.0f invokes/s by value, %.0f with a temporary buffer", values, buffers);
    return 1;
}

static const struct {
    const char *name;
    int (*run)(void);
} tests[] = {
    { "sessions", test_sessions }, { "values", test_values },   { "temporary", test_temporary },
    { "null", test_null },         { "shared", test_shared },   { "load", test_load },
    { "panic", test_panic },       { "storage", test_storage }, { "time", test_time },
    { "slow", test_slow },         { "cancel", test_cancel },   { "concurrent", test_concurrent },
    { "notify", test_notify },     { "everyones", test_everyones },
    { "bench", test_bench },
};

int main(int count, char **names)
{
    int failures = 0;
    const char *again = getenv("again");
    again = again ? again : "";
    if (TEEC_InitializeContext(NULL, &context)) {
        printf("@@ %scontext fail 0 no TEE\n", again);
        return 1;
    }
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
        int wanted = count < 2 && strcmp(tests[i].name, "bench");
        for (int n = 1; n < count; n++)
            wanted |= !strcmp(tests[i].name, names[n]);
        if (!wanted)
            continue;
        detail[0] = skipped = 0;
        double before = seconds();
        int good = tests[i].run();
        printf("@@ %s%s %s %.0f %s\n", again, tests[i].name, good ? "ok" : skipped ? "skip" : "fail",
               (seconds() - before) * 1e6, detail);
        fflush(stdout);
        failures += !good && !skipped;
    }
    TEEC_FinalizeContext(&context);
    return failures != 0;
}
