# Every target installs what it needs by itself, or says what is missing: see .ci/bootstrap.
PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
ONCE ?=
prefix ?= /usr/local
DESTDIR ?=
# Where mount(8) looks for its helpers, whatever the prefix.
helpers ?= /usr/sbin
export PYTHON prefix DESTDIR helpers

bin := .venv/bin
linters := lint-format lint-ruff lint-types lint-imports lint-length
# The tests run in processes of their own: the fast ones compute, the others wait for half of their
# time. PYTEST_ARGS=-n0 keeps all in one, as a debugger wants it.
spread := --dist=worksteal --numprocesses
findings = echo 'error: the linters have findings, shown above the tests' >&2; exit 1

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format bench soak man completion install uninstall clean $(linters)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## serve, mount and read a sample store until Ctrl-C; ONCE=1: do it, check it, leave
	@.ci/bootstrap --fuse run
	@$(bin)/cafsfs demo $(if $(ONCE),--once)

# The two gates show everything that is wrong: findings of the linters do not keep the tests from running.
test: ## linters, then the whole test suite; PYTEST_ARGS='-k name' selects
	@.ci/bootstrap --fuse dev
	@lint=0; $(MAKE) --no-print-directory lint || lint=1; \
	$(bin)/python -m pytest $(spread)=3 $(PYTEST_ARGS) || exit; \
	test $$lint = 0 || { $(findings); }

check: ## the fast gate: linters, then the tests that neither mount nor start processes
	@.ci/bootstrap dev
	@lint=0; $(MAKE) --no-print-directory lint || lint=1; \
	$(bin)/python -m pytest $(spread)=4 -m 'not fuse and not process' --hypothesis-profile=gate $(PYTEST_ARGS) || exit; \
	test $$lint = 0 || { $(findings); }

lint: ## the linters alone, side by side
	@.ci/bootstrap dev
	@$(MAKE) --no-print-directory --keep-going --jobs --output-sync=target $(linters)

lint-format:
	@$(bin)/ruff format --check

lint-ruff:
	@$(bin)/ruff check

lint-types:
	@$(bin)/mypy

lint-imports:
	@$(bin)/lint-imports --no-logo

# No function over 60 lines, counted from `def` to its last line; complexity is ruff's affair.
lint-length:
	@$(bin)/lizard --languages python --length 60 --CCN 1000 --warnings_only cafsfs tests

format: ## rewrite the code as ruff formats it
	@.ci/bootstrap dev
	@$(bin)/ruff check --fix-only --quiet
	@$(bin)/ruff format

# Without rclone the bench says what is missing, and goes on.
bench: ## measure speed, beside the asyncio client, rclone and plain files; BENCH_ARGS='--only pull'
	@.ci/bootstrap --fuse dev
	@.ci/bootstrap --peers dev || :
	@$(bin)/python -m tests.bench $(BENCH_ARGS)

# docutils makes the pages, and nothing needs it later: it is no dependency of cafsfs.
man: ## the man pages, into build/man
	@.ci/bootstrap run
	@$(bin)/python -c 'import docutils' 2>/dev/null || $(bin)/python -m pip install --quiet --disable-pip-version-check 'docutils>=0.20'
	@mkdir -p build/man
	@for page in cafsfs.1 mount.cafsfs.8; do \
	$(bin)/python -m cafsfs.cli.manual $$page >build/man/$$page.rst && \
	$(bin)/python -m docutils --report=2 --halt=2 --syntax-highlight=none --writer=manpage build/man/$$page.rst build/man/$$page || exit; \
	done; rm build/man/*.rst

completion: ## completion for bash, zsh and fish, into build/completion
	@.ci/bootstrap run
	@mkdir -p build/completion
	@$(bin)/cafsfs completion bash >build/completion/cafsfs
	@$(bin)/cafsfs completion zsh >build/completion/_cafsfs
	@$(bin)/cafsfs completion fish >build/completion/cafsfs.fish

install: ## cafsfs, its units, helpers and man pages below prefix=/usr/local; DESTDIR=DIR: below that
	@.ci/bootstrap run
	@.ci/install install

uninstall: ## take away what `make install` has put there, with the same prefix and DESTDIR
	@.ci/install uninstall

soak: ## ten minutes of random faults under readers; SOAK_ARGS='--minutes 1 --seed N'
	@.ci/bootstrap --fuse dev
	@$(bin)/python -m tests.soak $(SOAK_ARGS)

clean: ## remove all that make has made, .venv too
	@rm -rf .venv .systemd build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find cafsfs tests -name __pycache__ -prune -exec rm -rf {} +
