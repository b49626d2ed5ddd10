/* test_chat_template.c: chat templates of five families, hostile templates, and the life of the helper process. */
#include "model/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <ctype.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

#define SIZE(array) (sizeof(array) / sizeof *(array))

static const rs_message talk[] = {
    {"system", "Be brief."}, {"user", " Hi \"there\"\n"}, {"assistant", "Hello!"}, {"user", "Why?"}};

static chat_template *opened(const char *source) {
    chat_template *t = NULL;
    assert_int_equal(chat_template_open(str_of(source), str_of("<s>"), str_of("</s>"), &t), RS_OK);
    return t;
}

static void expect_text(chat_template *t, const rs_message *messages, size_t count, bool generate, const char *text) {
    char *got = NULL;
    rs_status status = chat_template_render(t, messages, count, generate, &got);
    if (status != RS_OK) fail_msg("%s: %s", rs_status_name(status), rs_last_error());
    assert_string_equal(got, text);
    free(got);
}

/* Renders `source` over the talk and expects it to fail so, with `words` in the error's sentence. */
static void expect_failure(const char *source, rs_status status, const char *words) {
    chat_template *t = opened(source);
    char *untouched = (char *)"untouched", *got = untouched;
    rs_status s = chat_template_render(t, talk, SIZE(talk), true, &got);
    if (s != status || !strstr(rs_last_error(), words))
        fail_msg("%.60s: %s: %s", source, rs_status_name(s), rs_last_error());
    assert_ptr_equal(got, untouched);
    chat_template_close(t);
}

/* ---- What this process has ---- */

static int open_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

/* Counts the children of this process and stores the pid of one. */
static int children(pid_t *child) {
    int n = 0;
    DIR *d = opendir("/proc");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[300], name[64];
        int pid, parent;
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%d (%63[^)]) %*c %d", &pid, name, &parent) == 3 && parent == getpid()) {
            *child = pid;
            n++;
        }
        if (f) fclose(f);
    }
    closedir(d);
    return n;
}

/* The number behind `field` in /proc/<pid>/status. */
static long status_field(pid_t pid, const char *field) {
    char path[64], text[256];
    long value = -1;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(text, sizeof text, f))
        if (strncmp(text, field, strlen(field)) == 0) value = atol(text + strlen(field));
    fclose(f);
    return value;
}

/* ---- Families ---- */

#define CHATML                                                                                                         \
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"            \
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

/* tidy: long, a table of templates and what they give. */
static void families(void **state) {
    (void)state;
    static const struct {
        const char *source, *text;
    } cases[] = {
        {CHATML, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \"there\"\n<|im_end|>\n"
                 "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"},
        /* Llama 3: BOS before the first header, contents trimmed. */
        {"{% set loop_messages = messages %}\n{% for message in loop_messages %}\n"
         "    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
         "message['content'] | trim + '<|eot_id|>' %}\n"
         "    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}\n"
         "    {{- content }}\n{%- endfor %}\n"
         "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
         "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHi \"there\"<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        /* Gemma 3: no system turn, its text goes before the first user's; the assistant is "model". */
        {"{{ bos_token }}\n{%- if messages[0].role == 'system' -%}\n{%- set prefix = messages[0].content + '\\n\\n' "
         "-%}\n"
         "{%- set rest = messages[1:] -%}\n{%- else -%}\n{%- set prefix = '' -%}{%- set rest = messages -%}\n{%- endif "
         "-%}\n"
         "{%- for m in rest -%}\n{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
         "{{ raise_exception('Roles must alternate user/assistant') }}{%- endif -%}\n"
         "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (prefix if loop.first else "
         "'') }}"
         "{%- if m.content is string -%}{{ m.content | trim }}{%- elif m.content is iterable -%}"
         "{{ raise_exception('parts') }}{%- endif -%}\n{{ '<end_of_turn>\\n' }}\n{%- endfor -%}\n"
         "{%- if add_generation_prompt -%}\n{{ '<start_of_turn>model\\n' }}\n{%- endif -%}",
         "<s><start_of_turn>user\nBe brief.\n\nHi \"there\"<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
         "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"},
        /* Mistral: a namespace counts turns, the system text joins the last instruction. */
        {"{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
         "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}\n"
         "{%- set ns = namespace(index=0) %}\n{{- bos_token }}\n{%- for m in turns %}\n"
         "    {%- if (m['role'] == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('order') }}{%- endif %}\n"
         "    {%- set ns.index = ns.index + 1 %}\n    {%- if m['role'] == 'user' %}\n"
         "        {%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m['content'] + "
         "'[/INST]' }}\n"
         "        {%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}\n"
         "    {%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}\n{%- endfor %}\n",
         "<s>[INST]  Hi \"there\"\n[/INST] Hello!</s>[INST] Be brief.\n\nWhy?[/INST]"},
        /* Qwen 3: tools are none, thoughts of earlier turns are dropped, reversed slices, an undefined switch. */
        {"{%- if tools %}{{- 'TOOLS' + (tools | tojson) }}{%- endif %}\n"
         "{%- set ns = namespace(last=0, seek=true) %}\n"
         "{%- for m in messages[::-1] %}\n{%- if ns.seek and m.role == 'user' and not (m.content.startswith('<tool>')) "
         "%}"
         "{%- set ns.seek = false %}{%- set ns.last = (messages | length - 1) - loop.index0 %}{%- endif %}\n{%- endfor "
         "%}\n"
         "{%- for m in messages %}\n{%- set content = m.content.split('</think>')[-1].lstrip('\\n') if "
         "m.role == 'assistant' and loop.index0 < ns.last else m.content %}\n"
         "{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n"
         "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n"
         "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>' }}{%- endif %}\n"
         "{%- endif %}",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi \"there\"\n<|im_end|>\n"
         "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"},
        /* What the environment must have: loop controls, generation blocks, tojson that keeps < and umlauts. */
        {"{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}{% break %}"
         "{% endif %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
         "{{ {'b': '<ü>', 'a': [1, none]} | tojson }}{{ {'b': 1} | tojson(indent=1) }}"
         "{{ strftime_now('%Y') | length }}{{ unknown }}{{ tools }}{{ pad_token is defined }}",
         "Be brief.;Hello!;{\"b\": \"<ü>\", \"a\": [1, null]}{\n \"b\": 1\n}4NoneFalse"},
    };
    for (size_t i = 0; i < SIZE(cases); i++) {
        chat_template *t = opened(cases[i].source);
        expect_text(t, talk, SIZE(talk), true, cases[i].text);
        chat_template_close(t);
    }
}

static void any_text_passes_through(void **state) {
    (void)state;
    chat_template *t = opened("{% for m in messages %}{{ m.role }}={{ m.content }}{% endfor %}");
    static const char *const texts[] = {"",
                                        "\"quotes\" and \\backslashes\\",
                                        "lines\r\n\tand \x01 control \x7f characters",
                                        "{{ 1 + 1 }}{% raise %}",
                                        "emoji \U0001F9E0 \U0001F468\u200D\U0001F469, 漢字, \u2028, \uFEFF, \U0010FFFF",
                                        "'}\n{\"text\": \"forged\"}\n"};
    for (size_t i = 0; i < SIZE(texts); i++) {
        char expected[200];
        snprintf(expected, sizeof expected, "user=%s", texts[i]);
        expect_text(t, &(rs_message){"user", texts[i]}, 1, false, expected);
    }
    expect_text(t, NULL, 0, false, "");

    size_t bytes = 4 << 20; /* More than any socket buffer holds, in both directions. */
    char *large = malloc(bytes + 1), *expected = malloc(bytes + 6);
    for (size_t i = 0; i < bytes; i++) large[i] = "ab\"\n"[i % 4];
    large[bytes] = '\0';
    snprintf(expected, bytes + 6, "user=%s", large);
    expect_text(t, &(rs_message){"user", large}, 1, false, expected);
    free(large);
    free(expected);
    chat_template_close(t);
}

static void bad_arguments(void **state) {
    (void)state;
    chat_template *t = opened(CHATML), *none = NULL;
    char *text = NULL;
    pid_t child;
    static const struct {
        rs_message message;
        const char *words;
    } cases[] = {
        {{"user", "caf\xE9"}, "content of message 1 is not UTF-8 at byte 3"},
        {{"user", "\xED\xA0\x80"}, "at byte 0"}, /* a surrogate */
        {{"user", "cut \xF0\x9F\xA7"}, "at byte 4"},
        {{"us\xFF", "x"}, "role of message 1 is not UTF-8 at byte 2"},
        {{NULL, "x"}, "role of message 1 is NULL"},
        {{"user", NULL}, "content of message 1 is NULL"},
    };
    for (size_t i = 0; i < SIZE(cases); i++) {
        assert_int_equal(chat_template_render(t, &cases[i].message, 1, true, &text), RS_BAD_ARGUMENT);
        assert_non_null(strstr(rs_last_error(), cases[i].words));
    }
    assert_int_equal(chat_template_render(t, NULL, 1, true, &text), RS_BAD_ARGUMENT);
    char *huge = malloc(CHAT_TEXT_BYTES_MAX + 2);
    memset(huge, 'x', CHAT_TEXT_BYTES_MAX + 1);
    huge[CHAT_TEXT_BYTES_MAX + 1] = '\0';
    assert_int_equal(chat_template_render(t, &(rs_message){"", huge}, 1, true, &text), RS_LIMIT);
    assert_null(text);
    assert_int_equal(children(&child), 0); /* None of these needed the helper. */
    chat_template_close(t);

    assert_int_equal(chat_template_open(str_of("a\xFF"), str_of(""), str_of(""), &none), RS_BAD_FORMAT);
    assert_int_equal(chat_template_open(str_of("a"), str_of("\xE9"), str_of(""), &none), RS_BAD_FORMAT);
    assert_int_equal(chat_template_open((str){huge, CHAT_SOURCE_BYTES_MAX + 1}, str_of(""), str_of(""), &none),
                     RS_LIMIT);
    assert_null(none);
    chat_template_close(NULL);
    free(huge);
}

/* ---- Templates that fail ---- */

static void template_errors(void **state) {
    (void)state;
    static const char *const sources[][2] = {
        {"{{ raise_exception('Only user and assistant roles, please.') }}",
         "failed: Only user and assistant roles, please"},
        {"a\nb {% if %}", "(line 2)"},
        {"{% for m in messages %}", "end of template"},
        {"{{ nothing.at.all }}", "'nothing' is undefined"},
        {"{{ messages[0].content + none }}", "TypeError"},
        {"{{ 1 / 0 }}", "ZeroDivisionError"},
        {"{% include '/etc/passwd' %}", "no loader"},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"},
        {"{{ 'a\\0b' }}", "NUL"},
        {"{{ raise_exception('one\ntwo\\u001b[31m\\u009b\\u2028three') }}", "failed: one two [31m three"},
        {"{{ raise_exception('é' * 100000) }}", "éé"},
    };
    for (size_t i = 0; i < SIZE(sources); i++) expect_failure(sources[i][0], RS_BAD_FORMAT, sources[i][1]);
}

static void the_sandbox_holds(void **state) {
    (void)state;
    static const char *const sources[] = {
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__()[0] }}",
        "{{ raise_exception.__globals__['os'].system('id') }}",
        "{{ strftime_now.__globals__ .os }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment.from_string('x') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ '%s'.format.__self__.__class__.mro() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ('{0.__class__.__mro__}' | attr('format'))(1) }}",
        "{{ (['{0.__class__.__mro__}'] | map('format', 1) | first).x.y }}",
        "{% set f = '{0.__class__.__init__.__globals__}'.format_map %}{{ f({'0': messages}) }}",
        "{{ range(100001) | length }}",
    };
    for (size_t i = 0; i < SIZE(sources); i++) expect_failure(sources[i], RS_BAD_FORMAT, "the chat template failed: ");
}

static void time_and_memory_are_limited(void **state) {
    (void)state;
    double begin = clock_s();
    expect_failure(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% if b %}{% endif %}{% endfor %}{% endfor %}", RS_LIMIT,
        "took longer than 5 s");
    expect_failure("{{ 7 ** (7 ** 70) }}", RS_LIMIT, "took longer than 5 s"); /* Already while it is compiled. */
    double seconds = clock_s() - begin;
    if (seconds < 9.9 || seconds > 30) fail_msg("two deadlines of 5 s took %g s", seconds);
    expect_failure("{{ 'a' * 10 ** 10 }}", RS_LIMIT, "memory");
    expect_failure("{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
                   RS_LIMIT, "memory");
    expect_failure("{{ 'a' * 70000000 }}", RS_LIMIT, "longer than 67108864 bytes");
    expect_failure("{{ '\"' * 40000000 }}", RS_LIMIT, "longer than 67108864 bytes"); /* Once quoted. */
    expect_failure("{% for a in range(99999) %}{{ 'a' * 100000 }}{% endfor %}", RS_LIMIT, "longer than 67108864 bytes");
}

/* A template that failed in any way does not spoil the next call. */
static void failures_are_over_with_the_call(void **state) {
    (void)state;
    chat_template *t =
        opened("{% if messages[0].content == 'bomb' %}{{ 'a' * 10 ** 10 }}{% elif messages[0].content == "
               "'raise' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}");
    char *text = NULL;
    for (int i = 0; i < 3; i++) {
        expect_text(t, &(rs_message){"user", "fine"}, 1, true, "fine");
        assert_int_equal(chat_template_render(t, &(rs_message){"user", "raise"}, 1, true, &text), RS_BAD_FORMAT);
        expect_text(t, &(rs_message){"user", "fine"}, 1, true, "fine");
        assert_int_equal(chat_template_render(t, &(rs_message){"user", "bomb"}, 1, true, &text), RS_LIMIT);
    }
    assert_null(text);
    chat_template_close(t);
}

/* ---- The helper's life ---- */

static void helper_is_confined(void **state) {
    (void)state;
    int inherited = dup(2), descriptors = 0; /* Without close-on-exec. */
    pid_t helper = 0;
    chat_template *t = opened(CHATML);
    char *text, path[64], line_text[200];
    assert_int_equal(chat_template_render(t, talk, 1, true, &text), RS_OK);
    free(text);
    assert_int_equal(children(&helper), 1);
    snprintf(path, sizeof path, "/proc/%d/fd", (int)helper);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) descriptors += e->d_name[0] != '.';
    closedir(d);
    assert_int_equal(descriptors, 3);
    assert_int_not_equal(getpgid(helper), getpgrp());
    assert_int_equal(status_field(helper, "Seccomp:"), 2);
    assert_int_equal(status_field(helper, "NoNewPrivs:"), 1);
    assert_int_not_equal(status_field(helper, "Uid:"), 0);
    print_message("helper: %ld KiB resident\n", status_field(helper, "VmRSS:"));
    snprintf(path, sizeof path, "/proc/%d/limits", (int)helper);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int limits = 0;
    while (fgets(line_text, sizeof line_text, f)) {
        unsigned long soft, hard;
        if (sscanf(line_text, "Max open files %lu %lu", &soft, &hard) == 2 ||
            sscanf(line_text, "Max file size %lu %lu", &soft, &hard) == 2 ||
            sscanf(line_text, "Max processes %lu %lu", &soft, &hard) == 2 ||
            sscanf(line_text, "Max core file size %lu %lu", &soft, &hard) == 2)
            limits += soft == 0 && hard == 0;
        if (sscanf(line_text, "Max address space %lu %lu", &soft, &hard) == 2) limits += hard == CHAT_MEMORY_BYTES;
    }
    fclose(f);
    assert_int_equal(limits, 5);
    chat_template_close(t);
    close(inherited);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* No child, not even a zombie. */
}

static void a_killed_helper_is_replaced(void **state) {
    (void)state;
    chat_template *t = opened("{{ messages[0].content }}");
    pid_t before = 0, after = 0;
    expect_text(t, talk, 1, false, "Be brief.");
    assert_int_equal(children(&before), 1);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kill(before, SIGKILL), 0);
        if (i == 1) usleep(50000); /* Dead before the request is sent, or maybe just after. */
        expect_text(t, talk, 1, false, "Be brief.");
        assert_int_equal(children(&after), 1); /* The dead one has been collected. */
        assert_int_not_equal(before, after);
        before = after;
    }
    assert_int_equal(kill(before, SIGSTOP), 0); /* It hangs: late, but over with this call. */
    char *text;
    assert_int_equal(chat_template_render(t, talk, 1, false, &text), RS_LIMIT);
    assert_int_equal(children(&after), 0);
    expect_text(t, talk, 1, false, "Be brief.");
    chat_template_close(t);
}

/* If this process dies, the helper reads the end of its socket. */
static void the_helper_does_not_outlive_us(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t host = fork();
    if (host == 0) {
        chat_template *t = NULL;
        char *text;
        pid_t helper = 0;
        close(ends[0]);
        if (chat_template_open(str_of("x"), str_of(""), str_of(""), &t) != RS_OK) _exit(1);
        if (chat_template_render(t, NULL, 0, false, &text) != RS_OK) _exit(1);
        children(&helper);
        if (write(ends[1], &helper, sizeof helper) < 0) _exit(1);
        raise(SIGKILL);
    }
    close(ends[1]);
    pid_t helper = 0;
    assert_int_equal(read(ends[0], &helper, sizeof helper), sizeof helper);
    close(ends[0]);
    waitpid(host, NULL, 0);
    double deadline = clock_s() + 5;
    char path[64], running = 'R';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)helper);
    while (clock_s() < deadline && running != 'Z') { /* In a container nobody may collect it. */
        FILE *f = fopen(path, "r");
        if (f == NULL) return;
        if (fscanf(f, "%*d (%*[^)]) %c", &running) != 1) running = 'Z';
        fclose(f);
        usleep(10000);
    }
    assert_int_equal(running, 'Z');
}

static void many_renders_leak_nothing(void **state) {
    (void)state;
    chat_template *t = opened(CHATML);
    char *text;
    pid_t helper;
    double begin = clock_s();
    assert_int_equal(chat_template_render(t, talk, SIZE(talk), true, &text), RS_OK);
    free(text);
    double started = clock_s();
    int descriptors = open_descriptors();
    assert_int_equal(children(&helper), 1);
    long resident = status_field(helper, "VmRSS:");
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(chat_template_render(t, talk, SIZE(talk), true, &text), RS_OK);
        free(text);
    }
    double done = clock_s();
    assert_int_equal(open_descriptors(), descriptors);
    assert_int_equal(children(&helper), 1);
    long grown = status_field(helper, "VmRSS:") - resident;
    if (grown > 2048) fail_msg("The helper grew by %ld KiB.", grown);
    print_message("start %.1f ms, render %.3f ms\n", (started - begin) * 1e3, done - started);
    chat_template_close(t);
    assert_int_equal(children(&helper), 0);
    descriptors--; /* The socket. */
    for (int i = 0; i < 5; i++) {
        t = opened(CHATML);
        assert_int_equal(chat_template_render(t, talk, SIZE(talk), true, &text), RS_OK);
        free(text);
        chat_template_close(t);
        assert_int_equal(open_descriptors(), descriptors);
    }
}

static void *render_often(void *arg) {
    chat_template *t = arg;
    for (int i = 0; i < 50; i++) {
        char *text = NULL, expected[32];
        snprintf(expected, sizeof expected, "%p %d", (void *)&text, i);
        if (chat_template_render(t, &(rs_message){"user", expected}, 1, true, &text) != RS_OK) return "failed";
        bool same = strcmp(text, expected) == 0;
        free(text);
        if (!same) return "mixed up";
    }
    return NULL;
}

static void threads_take_turns(void **state) {
    (void)state;
    chat_template *t = opened("{{ messages[0].content }}");
    pthread_t threads[4];
    for (size_t i = 0; i < SIZE(threads); i++) assert_int_equal(pthread_create(&threads[i], NULL, render_often, t), 0);
    for (size_t i = 0; i < SIZE(threads); i++) {
        void *problem;
        pthread_join(threads[i], &problem);
        if (problem) fail_msg("%s", (char *)problem);
    }
    chat_template_close(t);
}

/* ---- Replies ---- */

static void replies(void **state) {
    (void)state;
    static const struct {
        const char *line;
        rs_status status;
    } cases[] = {
        {"{\"text\": \"a\\nb\"}\n", RS_OK},
        {"{\"error\": \"format\", \"message\": \"m\"}\n", RS_BAD_FORMAT},
        {"{\"error\": \"limit\", \"message\": \"m\"}\n", RS_LIMIT},
        {"{\"error\": \"unsupported\", \"message\": \"m\"}\n", RS_UNSUPPORTED},
        {"{\"error\": \"other\", \"message\": \"m\"}\n", RS_IO},
        {"{\"error\": \"format\"}\n", RS_IO},
        {"{\"text\": 5}\n", RS_IO},
        {"{\"text\": \"a\\u0000b\"}\n", RS_IO},
        {"{\"text\": \"\xFF\"}\n", RS_IO},
        {"{\"text\": \"a\", \"more\": 1}\n", RS_IO},
        {"{\"text\": \"a\", \"text\": \"b\"}\n", RS_IO},
        {"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", RS_IO},
        {"{\"text\": \"a\"", RS_IO},
        {"[]\n", RS_IO},
        {"", RS_IO},
    };
    for (size_t i = 0; i < SIZE(cases); i++) {
        char *text = NULL;
        rs_status status = chat_template_reply(cases[i].line, strlen(cases[i].line), &text);
        if (status != cases[i].status) fail_msg("%s: %s", cases[i].line, rs_status_name(status));
        if (status == RS_OK)
            assert_string_equal(text, "a\nb");
        else
            assert_null(text);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replies),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(families),
        cmocka_unit_test(any_text_passes_through),
        cmocka_unit_test(template_errors),
        cmocka_unit_test(the_sandbox_holds),
        cmocka_unit_test(time_and_memory_are_limited),
        cmocka_unit_test(failures_are_over_with_the_call),
        cmocka_unit_test(helper_is_confined),
        cmocka_unit_test(a_killed_helper_is_replaced),
        cmocka_unit_test(the_helper_does_not_outlive_us),
        cmocka_unit_test(many_renders_leak_nothing),
        cmocka_unit_test(threads_take_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
