/* chat_template.h: chat messages to a prompt, by the model's own Jinja2 template.
 *
 * The template comes from an untrusted file, so Jinja2 runs it in its sandbox inside a helper process (python3) that
 * has no network, no file access and limited memory and time; JSON lines go over a socket, every wait has a deadline.
 * The environment is the one of the model authors' library (immutable sandbox, trim_blocks, lstrip_blocks, loop
 * controls, generation blocks, raise_exception, strftime_now, tojson), and so are the variables: messages, tools and
 * documents (none), add_generation_prompt, bos_token and eos_token (undefined when the model has none).
 *
 * The interpreter is the build's RS_PYTHON (/usr/bin/python3, where the distribution's python3-jinja2 lives), then the
 * python3 of PATH, so that a virtual environment with Jinja2 serves as well. Jinja2 3.1 or newer is needed. */
#ifndef RS_MODEL_CHAT_TEMPLATE_H
#define RS_MODEL_CHAT_TEMPLATE_H

#include "base/text.h"
#include "ringspan.h"

enum {
    CHAT_SOURCE_BYTES_MAX = 1 << 20, /* of a template; the longest published ones have 20 KB */
    CHAT_TEXT_BYTES_MAX = 8 << 20, /* of all messages together: two million tokens, rendered in half the time allowed */
    CHAT_REPLY_BYTES_MAX = 64 << 20, /* of the rendered text, quoted as JSON */
    CHAT_MEMORY_BYTES = 1 << 30,     /* address space of the helper: the text is held up to four times, wide */
};

typedef struct chat_template chat_template;

/* Keeps copies of the texts; starts no process yet. bos and eos are the texts of those tokens ("" when none).
 * RS_BAD_FORMAT for a text that is not UTF-8, RS_LIMIT for a source above CHAT_SOURCE_BYTES_MAX, RS_NO_MEMORY. */
rs_status chat_template_open(str source, str bos, str eos, chat_template **out);
void chat_template_close(chat_template *t); /* ends the helper, if it runs; NULL is allowed */

/* Any thread; callers take turns (a lock). Starts the helper at first use and again after it ended or was ended. Takes
 * at most the 20 s of a start and 5 s of rendering, twice when the helper is found dead. *text is UTF-8 without NUL,
 * to be freed with free.
 * RS_BAD_ARGUMENT: a role or content is NULL or not UTF-8 (nothing is replaced silently; the byte is named).
 * RS_UNSUPPORTED: no python3 with Jinja2. RS_BAD_FORMAT: the template is wrong, raised an exception or used what is
 * undefined. RS_LIMIT: it needs too much time or memory, or a text is too long. RS_IO: the helper died or misbehaved.
 * RS_NO_MEMORY. */
rs_status chat_template_render(chat_template *t, const rs_message *messages, size_t count, bool add_generation_prompt,
                               char **text);

/* Reads one line that the helper sent: its text (malloc'd), or the failure that it reports. RS_IO for a line that is no
 * such reply. Public for the fuzzer, as the helper is not to be trusted once a template has broken out of the sandbox.
 */
rs_status chat_template_reply(const char *line, size_t bytes, char **text);

#endif
