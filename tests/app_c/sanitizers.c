/* SPDX-License-Identifier: BSD-2-Clause */
/* Options of the sanitizers: an app has no environment to find them in. Leaks cannot be looked for
 * behind a seccomp filter, and an app has no heap of its own. */

const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

const char *__asan_default_options(void)
{
    return "exitcode=99:detect_leaks=0:symbolize=0:allocator_may_return_null=1";
}

const char *__ubsan_default_options(void)
{
    return "exitcode=99:symbolize=0:print_stacktrace=0";
}
