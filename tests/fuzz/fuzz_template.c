/* fuzz_template.c: any bytes as a line from the chat template's helper: a reply or an error, never more.
 *
 * clang -fsanitize=fuzzer,address,undefined with model/chat_template.c, the embedded source, base and jansson. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *text = NULL;
    rs_status status = chat_template_reply((const char *)data, bytes, &text);
    assert((status == RS_OK) == (text != NULL));
    if (text) {
        assert(strlen(text) < bytes);
    } else {
        const char *error = rs_last_error();
        size_t length = strlen(error);
        assert(length > 0 && length < STATUS_TEXT_MAX);
        for (size_t i = 0, n; i < length; i += n) { /* What a terminal can show. */
            int32_t c;
            n = utf8_decode(error + i, length - i, &c);
            assert(c >= 0x20 && (c < 0x7F || c >= 0xA0));
        }
    }
    free(text);
    return 0;
}
