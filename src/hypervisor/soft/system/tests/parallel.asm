; Two vCPUs at the same time: locked instructions, code that one changes and both run. Real mode. The first is entered at
; 0:0x8000, the second by a start-up message with vector 8. The end is 42 on port 0xf4, or the number of what failed.
;
; Results, dwords from 0x7000: see `parallel.rs`.
org 0x8000
bits 16
ROUNDS equ 4000
CHANGES equ 200

%macro meet 1
    lock inc dword [%1]
%%wait:
    pause
    cmp dword [%1], 2
    jb %%wait
%endmacro
%macro fail 1
    mov al, %1
    out 0xf4, al
    cli
    hlt
%endmacro

    jmp 0:start
start:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov ebp, 1
    lock xadd [0x7000], ebp             ; the number of this vCPU
    mov sp, bp
    shl sp, 8
    add sp, 0x6000
    meet 0x7004

    mov ecx, ROUNDS
again:
    lock inc dword [0x7010]
    lock add dword [0x7017], 2          ; misaligned
    lock inc byte [0x7020]
    lock dec word [0x7024]
    lock sub dword [0x7028], ecx
    lock neg dword [0x702c]             ; an even number of times
    lock not word [0x7030]
    clc
    lock adc dword [0x7034], 3
    mov eax, 1
    lock xadd [0x7038], eax
    mov eax, [0x703c]
.compare:
    lea ebx, [eax + 1]
    lock cmpxchg [0x703c], ebx
    jnz .compare
    push ecx
    mov eax, [0x7040]
    mov edx, [0x7044]
.wide:
    mov ebx, eax
    mov ecx, edx
    add ebx, 0x80000000
    adc ecx, 0
    lock cmpxchg8b [0x7040]
    jnz .wide
    pop ecx
.take:                                  ; a lock by XCHG
    mov al, 1
    xchg [0x7048], al
    test al, al
    jz .taken
    pause
    jmp .take
.taken:
    inc dword [0x704c]
    mov byte [0x7048], 0
.bit:                                   ; a lock by a bit
    lock bts dword [0x7050], 5
    jc .bit
    add dword [0x705c], 5
    lock btr dword [0x7050], 5
    mov eax, 39                         ; a bit of the dword behind
.far:
    lock bts [0x7050], eax
    jc .far
    sub dword [0x7058], 1
    lock btr [0x7050], eax
    lock inc dword [beside]             ; in a page with code
    lock inc dword [0x9ffe]             ; on two pages
    dec ecx
    jnz again
    meet 0x7008

    ; the first changes what both call; the second reports what it got
    xor cx, cx
    test bp, bp
    jnz second
first:
    inc cx
    mov [changed + 1], cx
    call changed
    cmp ax, cx
    je .heard
    fail 1
.heard:
    pause
    cmp [0x7060], cx
    jne .heard
    cmp cx, CHANGES
    jb first
    meet 0x700c
    mov al, 42
    out 0xf4, al
    cli
    hlt
second:
    call changed
    mov [0x7060], ax
    cmp ax, CHANGES
    jb second
    meet 0x700c
    cli
    hlt

align 512
beside: dd 0
align 512
changed:
    mov ax, 0
    ret
