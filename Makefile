# hartpod: build, run, test. `make help` lists the targets.
#
# Everything that a target needs beyond git and a Rust toolchain comes from the distribution, through apt-get and as root;
# a target says what it installs. Crates come from crates.io through cargo as the machine has it set up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CARGO      ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# hartpod and hartpod-pod side by side: the daemon looks for the pod agent beside itself.
BIN        := $(TARGET_DIR)/hartpod
export HARTPOD_BIN_DIR := $(BIN)

# The pod agent links everything into itself: it runs from a sealed memfd, in a mount namespace that has no libraries. It aborts
# rather than unwinds. It is linked to a fixed address: at a random one each process would relocate 360 KiB of tables for itself
# (heap, stack and mappings stay random). Flags of the last step only, so that the crates below it are built once for the
# daemon and the agent.
STATIC     := -C target-feature=+crt-static
AGENT      := $(STATIC) -C panic=abort -C relocation-model=static

# Guests run on riscv64 alone.
VMM      := $(if $(filter riscv64,$(shell uname -m)),hartpod-vmm)
PROGRAMS := hartpod hartpod-pod $(VMM)

# The lab's scripts build the same for another architecture.
export STATIC_FLAGS := $(STATIC)
export AGENT_FLAGS  := $(AGENT)

BUILD_PACKAGES := gcc libc6-dev
TEST_PACKAGES  := $(BUILD_PACKAGES) docker-registry erofs-utils containernetworking-plugins iproute2 iptables busybox-static protobuf-compiler prometheus
# The client of the tests is the k8s-cri crate, which is built with protoc.
LINT_PACKAGES  := $(BUILD_PACKAGES) protobuf-compiler

INSTALL := tests/setup/install

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: as-root build ## build hartpod and run one pod from the image inside it (needs root)
	$(BIN)/hartpod demo

.PHONY: build
build: build-packages ## build the daemon, the pod agent and, on riscv64, the VMM into target/hartpod
	@tests/setup/need-rust
	@tests/setup/stage 'build hartpod' $(CARGO) build --locked --release -p hartpod
	@tests/setup/stage 'build hartpod-pod' $(CARGO) rustc --locked --release -p hartpod-pod --bin hartpod-pod -- $(AGENT)
	@$(if $(VMM),tests/setup/stage 'build hartpod-vmm' $(CARGO) rustc --locked --release -p hartpod-vm --bin hartpod-vmm -- $(STATIC))
	@mkdir -p $(BIN)
	@install -m 0755 $(addprefix $(TARGET_DIR)/release/,$(PROGRAMS)) $(BIN)
	@echo "built: $(PROGRAMS:%=$(BIN)/%)"

.PHONY: test
test: as-root test-packages build attacker ## run every test: unit tests and the end-to-end suite (needs root)
	tests/setup/run-tests

.PHONY: lab
lab: lab-build ## run the tests inside emulated riscv64 machines with the H extension (needs root); LAB_FULL=1 runs all in each
	@tests/setup/stage 'lab' tests/lab/run $(LAB_ARGS)

.PHONY: lab-build
lab-build: as-root ## make what those machines run, and nothing more
	@tests/setup/need-rust
	@tests/setup/stage 'lab: packages' tests/lab/install
	@tests/setup/stage 'lab: root disk' tests/lab/root
	@tests/setup/stage 'lab: cross chroot' tests/lab/cross
	@tests/setup/stage 'lab: build' tests/lab/build

.PHONY: lab-shell
lab-shell: as-root ## a prompt in such a machine: LAB_MACHINE=aia, plain or plic
	@tests/setup/need-rust
	@tests/lab/install
	@tests/lab/build
	@tests/lab/machine $(or $(LAB_MACHINE),aia) shell

.PHONY: lab-bench
lab-bench: as-root ## time and weigh guests against QEMU with KVM, in such a machine: a quarter of an hour
	@tests/setup/need-rust
	@tests/lab/install
	@tests/lab/build $(if $(filter streams,$(LAB_ARGS)),hartpod-bench)
	@tests/lab/bench $(LAB_ARGS)

.PHONY: bench
bench: as-root test-packages build ## time every CRI call and weigh the processes; BENCH_ARGS='--against SOCKET' compares
	$(CARGO) build --locked --release -p hartpod-tests --bin hartpod-bench
	$(TARGET_DIR)/release/hartpod-bench $(BENCH_ARGS)

.PHONY: lint
lint: lint-packages ## check the format and run clippy with warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# The program that attacks from inside a container: it runs in an image without libraries.
.PHONY: attacker
attacker: build-packages
	$(CARGO) rustc --locked -p hartpod-attacker --bin hartpod-attacker -- $(STATIC)
	@mkdir -p $(BIN)
	@install -m 0755 $(TARGET_DIR)/debug/hartpod-attacker $(BIN)/hartpod-attacker

.PHONY: as-root
as-root:
	@[ "$$(id -u)" = 0 ] || { echo 'this must run as root: pods need namespaces, cgroups and mounts' >&2; exit 1; }

.PHONY: build-packages test-packages lint-packages
build-packages: ; @$(INSTALL) $(BUILD_PACKAGES)
test-packages:  ; @$(INSTALL) $(TEST_PACKAGES)
lint-packages:  ; @$(INSTALL) $(LINT_PACKAGES)

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
