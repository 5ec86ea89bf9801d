/* SPDX-License-Identifier: BSD-2-Clause
 *
 * What ordinary clients seldom do, for the comparison of the simulated driver with the real one: open
 * sessions with parameters and as somebody, page lists of awkward lengths, a process that leaves or dies
 * with everything open, more threads than a page has message slots. edges.py does the same.
 *   edges TEST...
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <tee_client_api.h>

#define PTA(last) { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, last } }
static const TEEC_UUID arithmetic = PTA(0x01), memory = PTA(0x02), clock_ta = PTA(0x04);
static const TEEC_UUID echo = { 0x7a3b9a4e, 0x5c1d, 0x4f0e,
                                { 0x9a, 0x55, 0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a } };

static TEEC_Context context;
#define BOTH (TEEC_MEM_INPUT | TEEC_MEM_OUTPUT)

static void say(const char *what, TEEC_Result result, uint32_t origin)
{
    printf("edge %s %#x origin %u\n", what, result, origin);
    fflush(stdout);
}

static TEEC_Result begin(TEEC_Session *s, const TEEC_UUID *uuid)
{
    uint32_t origin = 0;
    return TEEC_OpenSession(&context, s, uuid, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin);
}

static unsigned char *pages(size_t size)
{
    void *found = NULL;
    if (posix_memalign(&found, 4096, size))
        exit(9);
    memset(found, 1, size);
    return found;
}

static void params(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    TEEC_SharedMemory own = { .size = 5000, .flags = BOTH };
    unsigned char *data = pages(4096);
    TEEC_AllocateSharedMemory(&context, &own);
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INOUT, TEEC_MEMREF_TEMP_INPUT,
                                                         TEEC_MEMREF_PARTIAL_INOUT, TEEC_VALUE_OUTPUT) };
    op.params[0].value.a = 1;
    op.params[0].value.b = 2;
    op.params[1].tmpref.buffer = data + 100;
    op.params[1].tmpref.size = 100;
    op.params[2].memref.parent = &own;
    op.params[2].memref.offset = 16;
    op.params[2].memref.size = 32;
    TEEC_Result r = TEEC_OpenSession(&context, &s, &memory, TEEC_LOGIN_PUBLIC, NULL, &op, &origin);
    say("params", r, origin);
    if (!r)
        TEEC_CloseSession(&s);
    TEEC_ReleaseSharedMemory(&own);
}

static void lists(void)
{
    static const unsigned counts[] = { 510, 511, 512, 513, 1022, 1023 };
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
        unsigned char *data = pages((size_t)counts[i] * 4096);
        TEEC_SharedMemory whole = { .buffer = data, .size = (size_t)counts[i] * 4096, .flags = BOTH };
        say("list", TEEC_RegisterSharedMemory(&context, &whole), counts[i]);
        TEEC_ReleaseSharedMemory(&whole);
        free(data);
    }
}

static void zero(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    unsigned char *data = pages(4096);
    begin(&s, &memory);
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INPUT, TEEC_VALUE_OUTPUT, 0, 0) };
    op.params[0].tmpref.buffer = data;
    op.params[0].tmpref.size = 0;
    say("zero", TEEC_InvokeCommand(&s, 4, &op, &origin), origin);
    TEEC_SharedMemory empty = { .buffer = data, .size = 0, .flags = BOTH };
    say("register-zero", TEEC_RegisterSharedMemory(&context, &empty), 0);
    TEEC_ReleaseSharedMemory(&empty);
    TEEC_SharedMemory none = { .size = 0, .flags = BOTH };
    say("allocate-zero", TEEC_AllocateSharedMemory(&context, &none), 0);
    TEEC_ReleaseSharedMemory(&none);
    TEEC_CloseSession(&s);
}

static void twice(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    unsigned char *data = pages(8192);
    TEEC_SharedMemory one = { .buffer = data, .size = 8192, .flags = BOTH }, two = one;
    begin(&s, &memory);
    TEEC_RegisterSharedMemory(&context, &one);
    TEEC_RegisterSharedMemory(&context, &two);
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_PARTIAL_INPUT, TEEC_MEMREF_PARTIAL_OUTPUT, 0, 0) };
    op.params[0].memref.parent = &one;
    op.params[0].memref.size = 100;
    op.params[1].memref.parent = &two;
    op.params[1].memref.offset = 4000;
    op.params[1].memref.size = 200;
    say("twice", TEEC_InvokeCommand(&s, 3, &op, &origin), origin);
    TEEC_ReleaseSharedMemory(&one);
    TEEC_ReleaseSharedMemory(&two);
    TEEC_CloseSession(&s);
}

static void login(void)
{
    static const uint32_t who[] = { TEEC_LOGIN_USER, TEEC_LOGIN_GROUP, TEEC_LOGIN_APPLICATION, 0x80000000u };
    TEEC_Session s;
    for (int i = 0; i < 4; i++) {
        uint32_t origin = 0, group = 0;
        TEEC_Result r = TEEC_OpenSession(&context, &s, &arithmetic, who[i], i == 1 ? &group : NULL, NULL, &origin);
        say("login", r, origin);
        if (!r)
            TEEC_CloseSession(&s);
    }
}

static void refused(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    begin(&s, &arithmetic);
    TEEC_CloseSession(&s);
    say("closed-invoke", TEEC_InvokeCommand(&s, 0, NULL, &origin), origin);
    TEEC_CloseSession(&s);
}

static void leave(void)
{
    TEEC_Session s[2];
    TEEC_SharedMemory own = { .size = 4096, .flags = BOTH };
    TEEC_SharedMemory given = { .buffer = pages(8192), .size = 8192, .flags = BOTH };
    TEEC_AllocateSharedMemory(&context, &own);
    begin(&s[0], &arithmetic);
    TEEC_RegisterSharedMemory(&context, &given);
    begin(&s[1], &memory);
    say("leave", 0, 0);
    _exit(0);
}

static void killed(void)
{
    pid_t child = fork();
    if (!child) {
        TEEC_Session s;
        uint32_t origin;
        TEEC_InitializeContext(NULL, &context);
        begin(&s, &clock_ta);
        TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
        op.params[0].value.a = 300;
        op.params[0].value.b = 1000000;
        TEEC_InvokeCommand(&s, 0, &op, &origin);
        _exit(1);
    }
    usleep(60000);
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    say("killed", status, 0);
}

static void load(void)
{
    TEEC_Session s;
    uint32_t origin = 0;
    TEEC_Result r = TEEC_OpenSession(&context, &s, &echo, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin);
    say("load", r, origin);
    if (!r)
        TEEC_CloseSession(&s);
}

#define CROWD 14
static pthread_barrier_t together;
static void *sleeper(void *argument)
{
    TEEC_Session s;
    uint32_t origin;
    begin(&s, &clock_ta);
    pthread_barrier_wait(&together);
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = 100;
    TEEC_InvokeCommand(&s, 1, &op, &origin);
    pthread_barrier_wait(&together);
    TEEC_CloseSession(&s);
    return argument;
}

static void crowd(void)
{
    TEEC_Session s;
    uint32_t origin;
    pthread_t threads[CROWD];
    begin(&s, &clock_ta);
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    op.params[0].value.a = 1;
    say("sleep", TEEC_InvokeCommand(&s, 1, &op, &origin), origin);
    TEEC_RequestCancellation(&op); /* of nothing: what follows has no order */
    TEEC_CloseSession(&s);
    pthread_barrier_init(&together, NULL, CROWD);
    for (int i = 0; i < CROWD; i++)
        pthread_create(&threads[i], NULL, sleeper, NULL);
    for (int i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    say("crowd", 0, 0);
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    { "params", params }, { "lists", lists },     { "zero", zero },   { "twice", twice },   { "login", login },
    { "refused", refused }, { "leave", leave },   { "killed", killed }, { "load", load }, { "crowd", crowd },
};

int main(int count, char **names)
{
    if (TEEC_InitializeContext(NULL, &context))
        return 1;
    for (int n = 1; n < count; n++)
        for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
            if (!strcmp(tests[i].name, names[n]))
                tests[i].run();
    TEEC_FinalizeContext(&context);
    return 0;
}
