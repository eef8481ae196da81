; From real mode through 32-bit protected mode and virtual-8086 mode to long mode and user mode, and every way in
; between that a system takes. Each step says so with a letter on port 0xe9; the end is 42 on port 0xf4.
; Entered at 0:0x8000 in real mode.
org 0x8000
bits 16
%macro say 1
    mov al, %1
    out 0xe9, al
%endmacro

start:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    ; a software interrupt in real mode
    mov word [0x40*4], real_handler
    mov word [0x40*4+2], 0
    int 0x40
    ; far call and return
    call 0:real_far
    lgdt [gdtr]
    lidt [idtr32]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword 0x08:prot32

real_handler:
    say 'R'
    iret
real_far:
    say 'r'
    retf

bits 32
prot32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov esp, 0x7000
    mov ax, 0x28
    ltr ax
    say 'P'
    ; a limit of 15 bytes
    mov ax, 0x30
    mov fs, ax
    mov al, [fs:15]
    mov dword [resume], after_limit
    mov al, [fs:16]
    say '!'
after_limit:
    ; a segment that is not present
    mov dword [resume], after_np
    mov ax, 0x38
    mov fs, ax
    say '!'
after_np:
    ; LAR, LSL, VERR
    mov ax, 0x30
    lsl ebx, ax
    jnz bad
    cmp ebx, 15
    jne bad
    mov ax, 0x400
    lar ebx, ax
    jz bad
    mov ax, 0x08
    verw ax
    jz bad
    verr ax
    jnz bad
    say 'L'
    ; to ring 3
    push dword 0x23
    push dword 0x6000
    pushfd
    push dword 0x1b
    push dword user32
    iretd
bad:
    say '!'
    jmp $

user32:
    mov ax, 0x23
    mov ds, ax
    int 0x30
    ; a call gate to ring 0 with one parameter
    push dword 0x5a
    call 0x43:0
    cmp esp, 0x6000
    jne bad
    ; CLI is not ours
    mov dword [resume], after_cli
    cli
    say '!'
after_cli:
    int 0x31

; INT 0x30 from ring 3: on the task's stack
gate30:
    cmp esp, 0x7800 - 20
    jne bad
    say 'I'
    iretd
; the call gate
gate_call:
    push eax
    mov eax, [esp + 12]
    cmp eax, 0x5a
    pop eax
    jne bad
    say 'C'
    retf 4
; #GP: goes on at [resume]
fault13:
    say 'G'
    add esp, 4
    mov eax, [resume]
    mov [esp], eax
    iretd
fault11:
    say 'N'
    pop eax
    cmp eax, 0x38
    jne bad
    mov eax, [resume]
    mov [esp], eax
    iretd

; INT 0x31 from ring 3: stays in ring 0, tries virtual-8086 mode
gate31:
    mov esp, 0x7000
    mov dword [tss32 + 4], 0x7000
    push dword 0x111        ; gs
    push dword 0x112        ; fs
    push dword 0x113        ; ds
    push dword 0x114        ; es
    push dword 0x600        ; ss
    push dword 0x100        ; esp
    push dword 0x20002      ; eflags: VM
    push dword 0            ; cs
    push dword v86
    mov word [idt32 + 13*8], v86_fault
    iretd
bits 16
v86:
    mov ax, ds
    cmp ax, 0x113
    jne v86_bad
    mov bx, 0x1234
    push bx
    int 0x21                ; IOPL is 0: #GP
v86_bad:
    jmp $
bits 32
v86_fault:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    cmp dword [esp], 0x21*8+2
    je bad
    cmp dword [esp + 24], 0x114   ; the pushed es
    jne bad
    cmp dword [esp + 36], 0x111   ; and gs
    jne bad
    cmp word [0x60fe], 0x1234
    jne bad
    say 'V'
    ; page tables at 0x100000: 2 MiB of identity, for everybody
    mov edi, 0x100000
    xor eax, eax
    mov ecx, 0x3000 / 4
    rep stosd
    mov dword [0x100000], 0x101007
    mov dword [0x101000], 0x102007
    mov dword [0x102000], 0x87
    mov eax, 0x100000
    mov cr3, eax
    mov eax, 0x20           ; PAE
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x101           ; LME, SCE
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp 0x48:long64

bits 64
long64:
    lidt [idtr64]
    mov word [gdt + 0x50 + 2], tss64
    mov ax, 0x50
    ltr ax
    mov ax, 0x10
    mov ss, ax
    mov rsp, 0x7000
    say '6'
    ; system call registers
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00580048     ; user base 0x58, kernel 0x48
    wrmsr
    mov ecx, 0xc0000082
    mov eax, system_call
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    mov eax, 0x600          ; IF, DF
    wrmsr
    mov ecx, 0xc0000102
    mov eax, 0x1000
    wrmsr
    mov ecx, 0xc0000101
    mov eax, 0x2000
    wrmsr
    swapgs
    rdmsr
    cmp eax, 0x1000
    jne bad64
    ; a #UD here, on interrupt stack 1
    ud2
    say 'u'
    ; to ring 3
    push 0x63
    push 0x6000
    push 0x202
    push 0x6b
    push user64
    iretq
bad64:
    say '!'
    jmp $

user64:
    std
    mov rbx, rsp
    mov eax, 7
    syscall
back:
    pushfq
    pop rdx
    test edx, 0x400         ; DF as it was
    jz bad64
    cld
    cmp rsp, rbx
    jne bad64
    mov ax, cs
    cmp ax, 0x6b
    jne bad64
    mov ax, ss
    cmp ax, 0x63
    jne bad64
    int 0x33
    hlt                     ; not ours: #GP

system_call:
    cmp rcx, back
    jne bad64
    pushfq
    pop rdx
    test edx, 0x600
    jnz bad64
    say 'S'
    o64 sysret

fault6_64:
    cmp rsp, 0x7c00 - 40
    jne bad64
    say 'U'
    add qword [rsp], 2
    iretq
gate33_64:
    cmp rsp, 0x7800 - 40
    jne bad64
    say 'T'
    iretq
fault13_64:
    cmp qword [rsp], 0
    jne bad64
    say 'H'
    mov al, 42
    out 0xf4, al
    jmp $

align 8
resume: dd 0
gdtr:   dw gdt_end - gdt - 1
        dd gdt
idtr32: dw 0x40*8 - 1
        dd idt32
idtr64: dw 0x40*16 - 1
        dq idt64

align 8
gdt:
    dq 0
    dq 0x00cf9b000000ffff   ; 08 code, ring 0
    dq 0x00cf93000000ffff   ; 10 data, ring 0
    dq 0x00cffb000000ffff   ; 18 code, ring 3
    dq 0x00cff3000000ffff   ; 20 data, ring 3
    dw 0x67, tss32          ; 28 task state
    db 0, 0x89, 0, 0
    dq 0x004093000000000f   ; 30 data of 16 bytes
    dq 0x00cf13000000ffff   ; 38 not present
    dw gate_call, 0x08      ; 40 call gate, DPL 3, one parameter
    db 1, 0xec
    dw 0
    dq 0x00af9b000000ffff   ; 48 64-bit code, ring 0
    dw 0x67, 0              ; 50 64-bit task state
    db 0, 0x89, 0, 0
    dq 0                    ; 58 its upper half; also the base for SYSRET
    dq 0x00cff3000000ffff   ; 60 data, ring 3
    dq 0x00affb000000ffff   ; 68 64-bit code, ring 3
gdt_end:

align 8
%macro gate32 2
    dw %1, 0x08
    db 0, %2
    dw 0
%endmacro
idt32:
    times 11*8 db 0
    gate32 fault11, 0x8e
    dq 0
    gate32 fault13, 0x8e
    times 0x30*8-($-idt32) db 0
    gate32 gate30, 0xee
    gate32 gate31, 0xee
    times 0x40*8-($-idt32) db 0

%macro gate64 3
    dw %1, 0x48
    db %3, %2
    dw 0
    dq 0
%endmacro
idt64:
    times 6*16 db 0
    gate64 fault6_64, 0x8e, 1
    times 13*16-($-idt64) db 0
    gate64 fault13_64, 0x8e, 0
    times 0x33*16-($-idt64) db 0
    gate64 gate33_64, 0xee, 0
    times 0x40*16-($-idt64) db 0

tss32:
    dd 0
    dd 0x7800, 0x10
    times 0x68-12 db 0
tss64:
    dd 0
    dq 0x7800
    times 0x24-12 db 0
    dq 0x7c00
    times 0x68-0x2c db 0
