# make demo   build vmctl and a Debian guest from packages, boot it to its login prompt
# make test   all tests
# make test-kvm        guests on KVM, in an emulated host that has it
# make bench-kvm       guests on KVM against other VMMs, in the same host; prints ratios
# make bench-smp       two vCPUs of the software CPU, on one thread and on two; prints the ratio
# make check  formatting, lints, and the tests that need neither a guest nor a tool
# make deb    build a Debian package; make install DESTDIR= PREFIX= puts the files into place
# make freebsd         the program for FreeBSD 13.2 and later, cross-built, at build/freebsd/vmctl
# make freebsd-check   clippy for FreeBSD, quicker than a build
# Plain enough for GNU make and BSD make.

CARGO = cargo
BUILD = build

all: build

build:
	@sh scripts/announce-build release
	$(CARGO) build --release

# The guest's image is made while the program compiles.
demo: tools-demo
	@sh scripts/announce-build release
	sh scripts/beside "sh scripts/debian-image $(BUILD)/debian" "$(CARGO) build --release"
	sh scripts/demo $(BUILD)

test: tools-test
	sh scripts/beside "sh scripts/test-guest $(BUILD)/test-guest" "sh scripts/cargo-test --no-run"
	sh scripts/cargo-test

# What is quick: formatting, lints, the rules of the house, and the tests that need neither a guest nor a tool.
check: tools-check
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	sh scripts/lint-shell
	sh scripts/cargo-test --quick

# Guests on KVM, in a host that QEMU emulates with KVM in it; takes minutes.
test-kvm: tools-demo build
	sh scripts/test-kvm $(BUILD)

# Takes a quarter of an hour.
bench-kvm: tools-demo build
	sh scripts/bench-kvm $(BUILD)

bench-smp: tools-demo build
	sh scripts/need busybox:busybox-static cpio:cpio taskset:util-linux
	sh scripts/test-guest $(BUILD)/test-guest
	$(CARGO) bench --bench smp

# The long run of the check of the software CPU against the processor of this machine.
native-long:
	VMCTL_NATIVE_CASES=10000000 $(CARGO) test --release --test native -- --nocapture

# Boot times against qemu's TCG; prints ratios.
bench: tools-bench build
	sh scripts/test-guest $(BUILD)/test-guest
	sh scripts/debian-image $(BUILD)/debian
	$(CARGO) bench --bench boot
	$(CARGO) bench --bench fetch

# The cross compiler is fetched into build/freebsd/tools. FREEBSD_PROFILE is cargo's; `release` builds quicker, `dev` at once.
FREEBSD_PROFILE = dist

freebsd: tools-freebsd
	sh scripts/freebsd build $(FREEBSD_PROFILE)

freebsd-check: tools-freebsd
	sh scripts/freebsd check

# Plan, apply, check and list over a thousand guests; prints the figures.
bench-fleet: build
	$(CARGO) bench --bench fleet

# The units of `vmctl autostart enable` (root's, and a user's) under a real systemd, in a Debian guest; takes minutes.
systemd-proof: tools-demo build
	sh scripts/systemd-proof $(BUILD)
	sh scripts/systemd-proof $(BUILD) user

# `vmctl install` with an answer file, from Debian's installer to the login prompt of what it made; takes long.
install-proof: tools-install build
	mkdir -p $(BUILD)
	sh scripts/prove-install $(BUILD)

tools-install:
	sh scripts/need cargo:rustc curl:curl xz:xz-utils xorriso:xorriso mcopy:mtools "grub-mkrescue:grub-common grub-pc-bin"

tools-demo:
	sh scripts/need cargo:rustc mmdebstrap:mmdebstrap mke2fs:e2fsprogs

tools-check:
	sh scripts/need cargo:rustc

tools-test:
	sh scripts/need cargo:rustc busybox:busybox-static cpio:cpio mandoc:mandoc ssh-keygen:openssh-client blkid:util-linux mke2fs:e2fsprogs mkfs.xfs:xfsprogs \
	    mkfs.fat:dosfstools mcopy:mtools xorriso:xorriso sfdisk:fdisk \
	    grub-mkrescue:grub-common "update-grub:grub2-common grub-pc-bin" \
	    qemu-img:qemu-utils xz:xz-utils zstd:zstd bzip2:bzip2 \
	    ip:iproute2 nsenter:util-linux nft:nftables dnsmasq:dnsmasq-base ping:iputils-ping

tools-bench:
	sh scripts/need cargo:rustc busybox:busybox-static cpio:cpio mmdebstrap:mmdebstrap mke2fs:e2fsprogs qemu-system-x86_64:qemu-system-x86
	sh scripts/need qemu-img:qemu-utils curl:curl gzip:gzip

tools-freebsd:
	sh scripts/need cargo:rustc python3:python3 pip3:python3-pip readelf:binutils

# The program, stripped, manual pages, completions, templates, examples, rc.d script or systemd units.
PREFIX = /usr/local

install: build
	sh scripts/install-files target/release/vmctl "$(DESTDIR)" $(PREFIX)

# A Debian package, build/vmctl_VERSION_ARCHITECTURE.deb.
deb: build
	sh scripts/deb target/release/vmctl $(BUILD)

clean:
	$(CARGO) clean
	rm -rf $(BUILD)

.PHONY: test-kvm bench-kvm bench-smp check tools-check deb install-proof tools-install bench-fleet systemd-proof all build demo test native-long bench freebsd freebsd-check tools-demo tools-test tools-bench tools-freebsd install clean
