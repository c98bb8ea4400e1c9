"""A seccomp filter: no sockets, no namespaces, no tracing, no keys, no kernel interfaces that a program has no use for.

What is named is refused with EPERM, so that an honest program which tries sees an ordinary error. What is newer than
the highest number known here does not exist (ENOSYS).
"""

import ctypes
import os

import kernel

_AUDIT_ARCH = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
# name: (number on x86_64, on aarch64); None where the machine has no such call
_REFUSED = {
    'socket': (41, 198),
    # other processes' memory, descriptors and fate
    'ptrace': (101, 117), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271), 'pidfd_getfd': (438, 438),
    'kcmp': (312, 272), 'process_madvise': (440, 440), 'move_pages': (279, 239), 'migrate_pages': (256, 238),
    # namespaces and mounts
    'unshare': (272, 97), 'setns': (308, 268), 'mount': (165, 40), 'umount2': (166, 39), 'pivot_root': (155, 41),
    'chroot': (161, 51), 'open_tree': (428, 428), 'move_mount': (429, 429), 'fsopen': (430, 430),
    'fsconfig': (431, 431), 'fsmount': (432, 432), 'fspick': (433, 433), 'mount_setattr': (442, 442),
    'name_to_handle_at': (303, 264), 'open_by_handle_at': (304, 265), 'fanotify_init': (300, 262),
    # state that outlives a program: keys, System V and POSIX ipc, memory without a name
    'add_key': (248, 217), 'request_key': (249, 218), 'keyctl': (250, 219), 'shmget': (29, 194), 'shmat': (30, 196),
    'semget': (64, 190), 'msgget': (68, 186), 'mq_open': (240, 180), 'memfd_create': (319, 279),
    'memfd_secret': (447, 447),
    # large and rarely needed parts of the kernel
    'bpf': (321, 280), 'perf_event_open': (298, 241), 'userfaultfd': (323, 282), 'io_uring_setup': (425, 425),
    'io_uring_enter': (426, 426), 'io_uring_register': (427, 427), 'io_setup': (206, 0), 'personality': (135, 92),
    'modify_ldt': (154, None), 'uselib': (134, None), 'ustat': (136, None), 'sysfs': (139, None), 'syslog': (103, 116),
    'lookup_dcookie': (212, 18), 'quotactl': (179, 60), 'quotactl_fd': (443, 443),
    # the machine itself
    'acct': (163, 89), 'swapon': (167, 224), 'swapoff': (168, 225), 'reboot': (169, 142), 'sethostname': (170, 161),
    'setdomainname': (171, 162), 'iopl': (172, None), 'ioperm': (173, None), 'init_module': (175, 105),
    'delete_module': (176, 106), 'finit_module': (313, 273), 'kexec_load': (246, 104), 'kexec_file_load': (320, 294),
    'settimeofday': (164, 170), 'clock_settime': (227, 112), 'clock_adjtime': (305, 266), 'adjtimex': (159, 171),
    'vhangup': (153, 58),
}
_CLONE, _CLONE3, _IOCTL = (56, 220), (435, 435), (16, 29)
_LAST = 462  # mseal, Linux 6.10
_NEW_SPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET | kernel.CLONE_NEWCGROUP)
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into a terminal

_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # BPF_LD | BPF_W | BPF_ABS, ...
_KILL, _ALLOW, _EPERM, _ENOSYS = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data, little-endian


class _Instruction(ctypes.Structure):
    _fields_ = [('code', ctypes.c_uint16), ('jt', ctypes.c_uint8), ('jf', ctypes.c_uint8), ('k', ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.POINTER(_Instruction))]


def install() -> None:
    """Binds this process and its descendants for good. Needs no_new_privs; raises `OSError` on other machines."""
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError(f'no list of system calls for {machine}')
    program = [_Instruction(*fields) for fields in _program(machine)]
    array = (_Instruction * len(program))(*program)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.byref(_Program(len(program), array)))  # 2: SECCOMP_MODE_FILTER


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    """Instructions (code, jump if true, jump if false, constant)."""
    column = list(_AUDIT_ARCH).index(machine)
    clone, clone3, ioctl = _CLONE[column], _CLONE3[column], _IOCTL[column]
    program = [
        (_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_JUMP_ABOVE, 0, 1, _LAST), (_RETURN, 0, 0, _ENOSYS),  # x32 lies above as well
        # The flags of clone3 lie in memory, out of a filter's reach: the C library falls back to clone.
        (_JUMP_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _ENOSYS),
    ]
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            program += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    return [
        *program,
        (_JUMP_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _ARGUMENT_0), (_JUMP_ANY_BIT, 0, 6, _NEW_SPACES),
        (_RETURN, 0, 0, _EPERM),
        (_JUMP_EQUAL, 0, 4, ioctl), (_LOAD, 0, 0, _ARGUMENT_1),
        (_JUMP_EQUAL, 1, 0, _TERMINAL_INPUT[0]), (_JUMP_EQUAL, 0, 1, _TERMINAL_INPUT[1]), (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
