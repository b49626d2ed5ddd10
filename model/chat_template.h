/* chat_template.h: chat messages to a prompt, by the model's own Jinja2 template.
 *
 * The template comes from an untrusted file, so Jinja2 runs it in its sandbox inside a helper process (python3) that
 * has no network, no file access and limited memory and time; JSON lines go over a pipe, every wait has a deadline. The
 * environment is the one of the model authors' library (immutable sandbox, trim_blocks, lstrip_blocks, loop controls,
 * raise_exception, strftime_now, tojson). */
#ifndef RS_MODEL_CHAT_TEMPLATE_H
#define RS_MODEL_CHAT_TEMPLATE_H

#include "base/text.h"
#include "ringspan.h"

typedef struct chat_template chat_template;

/* Keeps copies of the texts; starts no process yet. bos and eos are the texts of those tokens ("" when none). */
rs_status chat_template_open(str source, str bos, str eos, chat_template **out);
void chat_template_close(chat_template *t); /* ends the helper, if it runs */

/* The contract of rs_chat_render; starts the helper at first use and again after it failed. One caller at a time (locks). */
rs_status chat_template_render(chat_template *t, const rs_message *messages, size_t count, bool add_generation_prompt,
                               char **text);

#endif
