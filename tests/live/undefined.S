/* SPDX-License-Identifier: BSD-2-Clause
 *
 * A "kernel" that makes calls with an immediate and prints a letter for each exception that it gets:
 * u for one with SP_EL1 in use, t with SP_EL0, x for a wrong syndrome, address or register. The words
 * stand in undefined.hex.
 */
        .equ    UART, 0x09000000
        .equ    OFF, 0x84000008         /* PSCI SYSTEM_OFF */
        .equ    SYNDROME, 0x02000000

start:  b       begin
        .word   0
        .quad   0, end - start, 0xa, 0, 0, 0
        .ascii  "ARM\x64"
        .word   0

begin:  adr     x9, vectors
        msr     vbar_el1, x9
        isb
        mov     x9, #UART
        mov     x0, #0x32000000
        mov     x2, #0x22
        mov     x3, #0x33
        mov     x7, #0x77
        adr     x12, 1f
1:      smc     #1
        adr     x12, 2f
2:      smc     #0xffff
        adr     x12, 3f
3:      hvc     #7
        msr     spsel, #0
        adr     x12, 4f
4:      smc     #2
        msr     spsel, #1
        mov     w10, #'\n'
        str     w10, [x9]
        mov     x0, #(OFF & 0xffff)
        movk    x0, #(OFF >> 16), lsl #16
        smc     #0
        b       .

taken:  mrs     x10, esr_el1
        mov     x13, #SYNDROME
        cmp     x10, x13
        b.ne    wrong
        mrs     x10, elr_el1
        cmp     x10, x12
        b.ne    wrong
        mov     x13, #0x32000000
        cmp     x0, x13
        b.ne    wrong
        cmp     x2, #0x22
        b.ne    wrong
        cmp     x3, #0x33
        b.ne    wrong
        cmp     x7, #0x77
        b.eq    said
wrong:  mov     w11, #'x'
said:   str     w11, [x9]
        mrs     x10, elr_el1
        add     x10, x10, #4
        msr     elr_el1, x10
        eret

        .balign 2048
vectors: mov    w11, #'t'
        b       taken
        .balign 0x200
        mov     w11, #'u'
        b       taken
        .balign 0x200
end:
