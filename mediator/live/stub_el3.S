/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The forwarding stub at EL3: as stub_el2.S, for a board with EL3 and without EL2. The emulator has no
 * PSCI of its own then, so the other side answers that too; a vCPU that is off waits here for an entry.
 *
 * The bell is the board's secure UART, which the guest cannot reach: no semihosting, so no way from
 * the guest's kernel to the host. A waiting vCPU spins; the other side keeps waits short.
 */
        .equ    MAILBOX, 0x40100000
        .equ    REGS, 0x00              /* x0..x7 */
        .equ    SYNDROME, 0x40          /* ESR_EL3, ELR_EL3 */
        .equ    STATE, 0x50
        .equ    ENTRY, 0x58             /* kernel entry (0: the vCPU is off), then x0 there */
        .equ    BELL, 0x68              /* 0 the UART, 1 none */

        .equ    RUNNING, 0
        .equ    REQUEST, 1
        .equ    FAULT, 4
        .equ    OFF, 5
        .equ    UNDEFINED, 6

        .equ    SCR, 0x531              /* RW, HCE, RES1 bits, NS: EL1 is AArch64 and non-secure */
        .equ    SCTLR, 0x30d00800       /* EL1 starts with MMU and caches off, RES1 bits set */
        .equ    SPSR, 0x3c5             /* EL1h, D A I F masked */
        .equ    SMC64, 0x17             /* exception class of an SMC */
        .equ    UNKNOWN, 0x02000000     /* ESR_EL1 of an undefined instruction: class 0, 32 bits long */
        .equ    UART, 0x09040000        /* secure PL011: its data register */
        .equ    GICD, 0x08000000        /* its control register */
        .equ    GICD_DS, 0x40           /* one security state: what the kernel expects */

        .text
start:  mrs     x0, mpidr_el1
        and     x0, x0, #0xff
        mov     x1, #MAILBOX
        add     x0, x1, x0, lsl #12
        mov     sp, x0
        adr     x1, vectors
        msr     vbar_el3, x1
        mov     x1, #0xf                /* system registers of the GIC, here and below */
        msr     S3_6_C12_C12_5, x1      /* ICC_SRE_EL3 */
        isb
        mov     x1, #SCR
        msr     scr_el3, x1
        msr     cptr_el3, xzr
        msr     mdcr_el3, xzr
        mov     x1, #GICD
        mov     w2, #GICD_DS
        str     w2, [x1]
        mov     x1, #(SCTLR & 0xffff)
        movk    x1, #(SCTLR >> 16), lsl #16
        msr     sctlr_el1, x1
park:   add     x3, sp, #ENTRY
1:      yield
        ldar    x1, [x3]
        cbz     x1, 1b
        ldr     x0, [sp, #ENTRY + 8]
        msr     elr_el3, x1
        mov     x1, #SPSR
        msr     spsr_el3, x1
        mov     x1, xzr
        mov     x2, xzr
        mov     x3, xzr
        isb
        eret

/* A guest's call: x0..x7 and the syndrome into the mailbox, ring, wait, answer back. */
call:   stp     x0, x1, [sp, #REGS]
        stp     x2, x3, [sp, #REGS + 16]
        stp     x4, x5, [sp, #REGS + 32]
        stp     x6, x7, [sp, #REGS + 48]
        mrs     x4, esr_el3
        mrs     x5, elr_el3             /* behind the SMC already */
        stp     x4, x5, [sp, #SYNDROME]
        lsr     x4, x4, #26
        cmp     x4, #SMC64
        b.ne    fault
        add     x3, sp, #STATE
        mov     x7, #REQUEST
        stlr    x7, [x3]
        ldr     x4, [sp, #BELL]
        cbnz    x4, 2f
        mov     x1, #UART
        str     w7, [x1]
2:      yield
        ldar    x7, [x3]
        cmp     x7, #REQUEST
        b.eq    2b
        ldp     x0, x1, [sp, #REGS]
        ldp     x4, x5, [sp, #REGS + 32]
        mov     x2, #RUNNING
        stlr    x2, [x3]
        cmp     x7, #OFF
        b.eq    park
        cmp     x7, #UNDEFINED
        b.eq    undef
        ldp     x2, x3, [sp, #REGS + 16]
        ldp     x6, x7, [sp, #REGS + 48]
        eret

/* The call is an undefined instruction: the exception that the processor itself would take at EL1 (one
 * without PAN), with x0..x7 as they are. SPSR's lowest bit says which stack pointer was in use. */
undef:  mrs     x2, elr_el3
        sub     x2, x2, #4
        msr     elr_el1, x2
        mrs     x2, spsr_el3
        msr     spsr_el1, x2
        mrs     x3, vbar_el1
        tbz     x2, #0, 8f
        add     x3, x3, #0x200
8:      msr     elr_el3, x3
        mov     x2, #SPSR
        msr     spsr_el3, x2
        mov     x2, #UNKNOWN
        msr     esr_el1, x2
        ldp     x2, x3, [sp, #REGS + 16]
        ldp     x6, x7, [sp, #REGS + 48]
        eret

/* Anything else that ends up here is a defect of this stub: say so once and stop. */
fault:  mov     x0, #FAULT
        str     x0, [sp, #STATE]
        mov     x1, #UART
        str     w0, [x1]
3:      wfe
        b       3b

        .balign 2048
vectors:
        .rept   8                       /* from EL3 itself */
        .balign 128
        b       fault
        .endr
        .balign 128                     /* synchronous, from below in AArch64 */
        b       call
        .rept   7
        .balign 128
        b       fault
        .endr
