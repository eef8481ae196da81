; Real mode: interrupts that wait for STI, HLT, string I/O, code that changes itself, single step, breakpoints.
; Entered at 0:0x8000; letters on port 0xe9, the end is 42 on port 0xf4. Port 0xf5 raises the interrupt written to it.
org 0x8000
bits 16
%macro say 1
    mov al, %1
    out 0xe9, al
%endmacro

start:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    mov word [0x50*4], irq
    mov word [0x50*4+2], 0
    mov word [1*4], trap
    mov word [1*4+2], 0
    mov al, 0x50
    out 0xf5, al
    say 'a'
    sti
    hlt
    say 'b'
    ; the same through POPF
    cli
    mov al, 0x50
    out 0xf5, al
    say 'c'
    pushf
    pop ax
    or ax, 0x200
    push ax
    popf
    nop
    say 'd'
    ; string I/O
    mov si, text
    mov cx, 3
    mov dx, 0xe9
    rep outsb
    mov di, 0x6000
    mov cx, 2
    mov dx, 0x44
    rep insw
    cmp word [0x6002], 0x4444
    jne bad
    test cx, cx
    jnz bad
    ; code that changes itself, here and one instruction ahead
    mov cx, 3
again:
    mov al, 'k'
patch:
    mov ah, 0
    out 0xe9, al
    inc byte [again + 1]
    loop again
    mov byte [ahead + 1], 'y'
ahead:
    mov al, 'n'
    out 0xe9, al
    ; single step: two NOPs behind POPF
    xor bx, bx
    pushf
    pop ax
    or ax, 0x100
    push ax
    popf
    nop
    nop
    mov cx, bx
    pushf
    pop ax
    and ax, 0xfeff
    push ax
    popf
    cmp cx, 2
    jne bad
    say 's'
    ; an instruction breakpoint
    xor bx, bx
    mov eax, broken
    mov dr0, eax
    mov eax, 2
    mov dr7, eax
    nop
broken:
    nop
    cmp bx, 1
    jne bad
    mov eax, dr6
    test al, 1
    jz bad
    xor eax, eax
    mov dr7, eax
    say 'B'
    ; a watchpoint: 2 bytes at 0x6100, writes
    xor bx, bx
    mov eax, 0x6100
    mov dr1, eax
    mov eax, 0x00500008
    mov dr7, eax
    mov word [0x6100], 1
    cmp bx, 1
    jne bad
    xor eax, eax
    mov dr7, eax
    mov word [0x6100], 1
    cmp bx, 1
    jne bad
    say 'W'
    mov al, 42
    out 0xf4, al
    jmp $
bad:
    say '!'
    jmp $

irq:
    push ax
    say 'i'
    pop ax
    iret
; resumes behind a breakpoint: the image of RF is set through a 32-bit IRET
trap:
    inc bx
    push bp
    mov bp, sp
    push eax
    mov ax, [bp + 2]
    cmp ax, broken
    pop eax
    pop bp
    jne .plain
    push dword 0x10002
    push dword 0
    push dword broken
    iretd
.plain:
    iret
text: db 'xyz'
