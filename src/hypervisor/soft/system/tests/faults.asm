; Long mode: instructions that fault in the middle and are started again once the handler has mapped the page; write
; protection, NX, SMEP and SMAP met by running code; compatibility mode; a double fault on its own stack.
; Entered at 0:0x8000 in real mode; letters on port 0xe9, the end is 42 on port 0xf4.
org 0x8000
%macro say 1
    push rax
    mov al, %1
    out 0xe9, al
    pop rax
%endmacro
TABLES  equ 0x100000        ; PML4, PDPT, PD, then the page table for 2 MiB to 4 MiB
PT      equ TABLES + 0x3000
AREA    equ 0x200000        ; demand-mapped to 0x400000 and up

bits 16
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov es, ax
    mov sp, 0x7000
    lgdt [gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 0x08:prot32
bits 32
prot32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov edi, TABLES
    xor eax, eax
    mov ecx, 0x4000 / 4
    rep stosd
    mov dword [TABLES], TABLES + 0x1007
    mov dword [TABLES + 0x1000], TABLES + 0x2007
    mov dword [TABLES + 0x2000], 0x83            ; 0 to 2 MiB: supervisor
    mov dword [TABLES + 0x2008], PT + 7          ; 2 to 4 MiB: page by page
    mov dword [TABLES + 0x2010], 0x400083        ; 4 to 6 MiB: supervisor
    mov eax, TABLES
    mov cr3, eax
    mov eax, 0x6a0          ; PAE, PGE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901           ; NXE, LME, SCE
    wrmsr
    mov eax, cr0
    or eax, 0x80010000      ; PG, WP
    mov cr0, eax
    jmp 0x18:long64

bits 64
long64:
    lidt [idtr]
    mov ax, 0x20
    ltr ax
    mov ax, 0x10
    mov ss, ax
    mov ds, ax
    mov rsp, 0x7000
    ; a read-modify-write
    mov rbx, AREA + 0x10
    mov eax, 5
    add [rbx], rax
    add [rbx], rax
    cmp qword [rbx], 10
    jne bad
    ; across two pages that are both missing
    mov rax, 0x1122334455667788
    mov [AREA + 0x2ffd], rax
    cmp [AREA + 0x2ffd], rax
    jne bad
    lock xadd [AREA + 0x4000], rax
    cmp [AREA + 0x4000], rax
    je bad
    ; push and call with the stack on missing pages
    mov rbp, rsp
    mov rsp, AREA + 0x7000
    push rax
    mov rsp, AREA + 0x9000
    call .here
.here:
    pop rdx
    mov rsp, rbp
    cmp edx, .here
    jne bad
    ; a string move over four missing pages, and one that overlaps
    mov rdi, 0x10000
    mov ecx, 0x600
.fill:
    stosq
    add rax, 0x123
    loop .fill
    mov rsi, 0x10000
    mov rdi, AREA + 0x10800
    mov ecx, 0x3000
    rep movsb
    jrcxz .moved
    jmp bad
.moved:
    mov rsi, 0x10000
    mov rdi, AREA + 0x10800
    mov ecx, 0x600
    repe cmpsq
    jne bad
    mov rdi, AREA + 0x20000
    mov ecx, 0x2000 / 8
    mov rax, 0x0101010101010101
    rep stosq
    cmp [AREA + 0x21ff8], rax
    jne bad
    ; SSE loads and stores
    movups xmm0, [AREA + 0x30ff8]
    movups [AREA + 0x32ff8], xmm1
    cmpxchg16b [AREA + 0x34000]
    say 'D'
    mov rax, [faults]
    cmp rax, 17
    jne bad
    ; write protection: a page made read-only
    mov rax, AREA
    and qword [PT], ~2
    invlpg [rax]
    mov qword [expect], 3
    mov qword [resume], .after_wp
    mov [rax], rax
    jmp bad
.after_wp:
    ; and with CR0.WP clear it is writable
    mov rdx, cr0
    and rdx, ~0x10000
    mov cr0, rdx
    mov [rax], rax
    or rdx, 0x10000
    mov cr0, rdx
    mov qword [resume], .after_wp2
    mov [rax], rax
    jmp bad
.after_wp2:
    say 'W'
    ; NX
    mov byte [AREA + 0x1000], 0xc3
    call AREA + 0x1000
    mov rax, AREA + 0x1000
    bts qword [PT + 8], 63
    invlpg [rax]
    mov qword [expect], 0x11
    mov qword [resume], .after_nx
    call AREA + 0x1000
    jmp bad
.after_nx:
    mov rsp, 0x7000
    say 'X'
    ; SMEP and SMAP
    btr qword [PT + 8], 63
    or qword [PT + 8], 4
    invlpg [rax]
    call AREA + 0x1000
    mov rdx, cr4
    or rdx, 0x300000
    mov cr4, rdx
    mov qword [resume], .after_smep
    call AREA + 0x1000
    jmp bad
.after_smep:
    mov rsp, 0x7000
    mov qword [expect], 1
    mov qword [resume], .after_smap
    mov cl, [rax]
    jmp bad
.after_smap:
    stac
    mov cl, [rax]
    clac
    mov qword [resume], .after_smap2
    mov cl, [rax]
    jmp bad
.after_smap2:
    and rdx, ~0x300000
    mov cr4, rdx
    mov cl, [rax]
    say 'S'
    ; compatibility mode at ring 3: the code is copied to a user page
    mov rsi, compat
    mov rdi, AREA + 0x1000
    mov ecx, compat_end - compat
    rep movsb
    mov qword [expect], 0xffff
    push 0x33
    push AREA + 0x1f00
    push 0x202
    push 0x3b
    push AREA + 0x1000
    iretq
bad:
    say '!'
    jmp $

bits 32
compat:
    mov ax, 0x33
    mov ds, ax
    mov eax, 0x12345678
    push eax
    pop ebx
    cmp eax, ebx
    jne $
    int 0x30
compat_end:

bits 64
gate30:
    cmp rsp, 0x7800 - 40
    jne bad
    cmp dword [rsp + 24], AREA + 0x1f00
    jne bad
    say 'C'
    ; a page fault whose own stack is not there is #DF, on a stack that is
    mov qword [tss + 0x2c], 0x10000000
    mov rax, [0x10000000]
    jmp bad

fault14:
    push rax
    push rbx
    mov rax, [rsp + 16]     ; the error code
    mov rbx, cr2
    cmp rax, [expect]
    je .expected
    test al, 1
    jnz bad
    cmp rbx, AREA
    jb bad
    cmp rbx, AREA + 0x200000
    jae bad
    sub rbx, AREA
    shr rbx, 12
    mov rax, rbx
    shl rax, 12
    add rax, 0x400003
    mov [PT + rbx * 8], rax
    inc qword [faults]
    pop rbx
    pop rax
    add rsp, 8
    iretq
.expected:
    mov rax, [resume]
    mov [rsp + 24], rax
    pop rbx
    pop rax
    add rsp, 8
    iretq
fault8:
    cmp rsp, 0x7c00 - 48
    jne bad
    say 'F'
    mov al, 42
    out 0xf4, al
    jmp $

align 8
faults: dq 0
expect: dq 0xffff
resume: dq 0
gdtr:   dw gdt_end - gdt - 1
        dd gdt
idtr:   dw 0x31*16 - 1
        dq idt
align 8
gdt:
    dq 0
    dq 0x00cf9b000000ffff   ; 08 32-bit code
    dq 0x00cf93000000ffff   ; 10 data
    dq 0x00af9b000000ffff   ; 18 64-bit code
    dw 0x67, tss            ; 20 task state
    db 0, 0x89, 0, 0
    dq 0
    dq 0x00cff3000000ffff   ; 30 user data
    dq 0x00cffb000000ffff   ; 38 user code, 32-bit
gdt_end:
align 8
%macro gate64 3
    dw %1, 0x18
    db %3, %2
    dw 0
    dq 0
%endmacro
idt:
    times 8*16 db 0
    gate64 fault8, 0x8e, 1
    times 14*16-($-idt) db 0
    gate64 fault14, 0x8e, 2
    times 0x30*16-($-idt) db 0
    gate64 gate30, 0xee, 0
tss:
    dd 0
    dq 0x7800
    times 0x24-12 db 0
    dq 0x7c00
    dq 0x7a00
    times 0x68-0x34 db 0
