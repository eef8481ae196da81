/*
 * The first C function of the FreeBSD program.
 *
 * FreeBSD 14 moved what crt1.o did before main() into libc, as __libc_start1, version FBSD_1.7 (lib/libc/csu in its
 * sources). The start file that the cross compiler brings is FreeBSD 14's and calls it, but the libc of FreeBSD 13 has
 * no such symbol: a program with it would not start there. With a definition in the program itself, the same binary
 * starts on 13, 14 and 15.
 *
 * What is to be done for a dynamically linked program is the same in lib/csu/amd64/crt1.c of 13 and in
 * lib/libc/csu/libc_start1.c of 14: environ and __progname, which libc reads, are set; rtld's clean-up is registered;
 * main is called. rtld has run the constructors by then, as the "no init" note of the start file asks it to.
 *
 * The ABI note says which release's behaviour the program expects of the kernel (NT_FREEBSD_ABI_TAG of
 * sys/sys/elf_common.h; 1302001 is __FreeBSD_version of 13.2-RELEASE). The start file's own note stands in a section
 * group, which a link with --gc-sections drops.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;
extern const char *__progname;

void __libc_start1(int argc, char **argv, char **env, void (*cleanup)(void), int (*program)(int, char **, char **));

void
__libc_start1(int argc, char **argv, char **env, void (*cleanup)(void), int (*program)(int, char **, char **))
{
	const char *slash;

	if (environ == NULL)
		environ = env;
	if (argc > 0 && argv[0] != NULL) {
		slash = strrchr(argv[0], '/');
		__progname = slash == NULL ? argv[0] : slash + 1;
	}
	(void)atexit(cleanup);
	errno = 0;
	exit(program(argc, argv, env));
}

__asm__(
    ".pushsection .note.tag, \"a\", @note\n"
    ".p2align 2\n"
    ".4byte 8, 4, 1\n"
    ".asciz \"FreeBSD\"\n"
    ".4byte 1302001\n"
    ".popsection\n");
