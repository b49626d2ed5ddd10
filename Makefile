# A thin face: the work is done by CMake presets and the programs in tools/.
PREFIX ?= /usr/local
MODEL = models/SmolLM2-135M-Instruct.Q4_1.gguf
TEXT = /usr/share/common-licenses/GPL-3

all: ## build what is installed, into build/release
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release

setup: ## install what building and testing needs (Debian 12)
	@tools/setup

demo: ## from nothing to an answer: install, build, fetch a small model, run it on three ranks
	@tools/setup --minimal
	@$(MAKE) --no-print-directory all
	@tools/fetch-model smollm2-135m
	@echo "A question about a text of 7,700 tokens, the GNU GPL 3; each of three ranks holds a third of the context."
	build/release/ringspan run -m $(MODEL) --ranks 3 --temp 0 -n 64 -f $(TEXT) \
	    -p "Which commands show the details of the license?"

test: ## everything: tests, sanitizers, fuzzers, tidy; ends with "N passed, N failed, N skipped"
	@tools/setup
	@python3 tools/run_tests.py

bench: ## time every kernel set against the machine's ceilings
	@$(MAKE) --no-print-directory all
	@cmake --build --preset release --target kernel_check
	build/release/kernel_check --bench

coverage: ## run the tests with line counters and print what they reach
	@tools/setup
	@cmake --preset coverage --log-level=WARNING
	@cmake --build --preset coverage --target all checks
	-@ctest --preset coverage
	@.venv/bin/gcovr --object-directory build/coverage --exclude tests/ --print-summary

install: all ## install into PREFIX (and DESTDIR)
	@cmake --install build/release --prefix $(PREFIX)

clean: ## remove what was built (models and .venv stay)
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

.PHONY: all setup demo test bench coverage install clean help
