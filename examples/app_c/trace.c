/* SPDX-License-Identifier: BSD-2-Clause */
/* What a recorder is told, if the hypervisor wants to know: the events of the mediator by name. A
 * checker follows them, and looks whether what was said is what was done. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "mini.h"

#define WORD_ROOM 21 /* decimal digits of 64 bits, and a comma */
#define LINE_ROOM (64 + 16 * WORD_ROOM)

int recorded(const struct mini *mini)
{
    return (mini->app.offers & APP_OFFER_TRACE) != 0;
}

static size_t add(char *line, size_t at, struct word word)
{
    if (word.none)
        return at + (size_t)snprintf(line + at, WORD_ROOM + 1, ",-1");
    return at + (size_t)snprintf(line + at, WORD_ROOM + 1, ",%" PRIu64, word.value);
}

/* The event name with its fields, and registers as its last one if there are any. */
int trace(struct mini *mini, const char *name, const struct word *words, size_t count,
          const uint64_t *registers, size_t register_count)
{
    char line[LINE_ROOM];
    size_t at, n;

    if (!recorded(mini))
        return APP_OK;
    at = (size_t)snprintf(line, sizeof line, "[\"%s\"", name);
    for (n = 0; n < count; n++)
        at = add(line, at, words[n]);
    if (register_count != 0) {
        memcpy(line + at, ",[", 2);
        at += 1;
        for (n = 0; n < register_count; n++) {
            size_t from = at;

            at = add(line, at, (struct word){registers[n], 0});
            if (n == 0)
                line[from] = '[';
        }
        line[at++] = ']';
    }
    line[at++] = ']';
    return app_trace(&mini->app, line, at);
}

int trace_finding(struct mini *mini, const struct guest *guest, const char *text)
{
    const char *detail = strstr(text, ": ");
    char line[LINE_ROOM];
    int length;

    if (!recorded(mini) || detail == NULL)
        return APP_OK;
    length = snprintf(line, sizeof line, "[\"Finding\",%" PRIu64 ",\"%.*s\",\"%s\"]", guest->id,
                      (int)(detail - text), text, detail + 2);
    return app_trace(&mini->app, line, (size_t)length);
}
