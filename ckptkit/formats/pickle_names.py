"""What the names in a pickle can do: the one table that loading and ``inspect --security`` judge them by.

A name runs something (`would_run`), is known to build a value and do no more (`builds_a_value`), or is that
of other code, of which nothing is known. Names that a reader here interprets itself are in its own table of
handlers, ``torch_pickle.UNDERSTOOD``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_COMMANDS = "runs commands or programs"
_CODE = "imports or runs code"
_REACHES = "reaches into the interpreter, by which any code can be run"
_LOADS = "loads another file, which may run code"
_NETWORK = "opens network connections"
_FILES = "opens, writes or deletes files"

_RUNNING: Mapping[str, str] = {
    _COMMANDS: """
        os subprocess _posixsubprocess popen2 commands pty signal multiprocessing asyncio pip ensurepip venv
        distutils setuptools webbrowser imaplib platform pexpect atexit _signal
        uuid._get_command_stdout uuid._popen uuid._find_mac
        _osx_support _aix_support _pyrepl torch.utils.collect_env torch._inductor
        numpy.distutils test.support test.libregrtest
    """,
    _CODE: """
        runpy importlib _frozen_importlib _frozen_importlib_external _imp imp zipimport pkgutil site code
        codeop pdb bdb timeit cProfile profile trace doctest idlelib lib2to3 unittest compileall py_compile
        logging.config functools.reduce builtins.reduce operator.call _operator.call
        ctypes _ctypes cffi builtins.eval builtins.exec builtins.execfile builtins.compile builtins.apply
        builtins.__import__ types.FunctionType types.CodeType types.LambdaType types.MethodType
        torch.hub torch.utils.cpp_extension torch.ops.load_library torch.classes.load_library
        torch.fx.experimental.symbolic_shapes torch.fx.graph_module
        torch.jit.unsupported_tensor_ops.execWrapper torch.jit.script torch.jit._script torch.jit.frontend
        torch.jit.trace torch.jit._trace torch.jit.CompilationUnit torch.compile torch._dynamo
        torch.utils.bottleneck numpy.f2py numpy.testing numpy.ctypeslib.load_library
        numpy.lib.utils.safe_eval pandas.eval pandas.core.computation cloudpickle dill
    """,
    _REACHES: """
        sys gc inspect threading _thread pydoc builtins.getattr builtins.setattr
        builtins.delattr
        builtins.globals builtins.locals builtins.vars builtins.breakpoint builtins.input
        operator.attrgetter operator.methodcaller _operator.attrgetter _operator.methodcaller
        operator.itemgetter _operator.itemgetter builtins.help
    """,
    _LOADS: """
        pickle _pickle cPickle marshal shelve joblib.load torch.load torch.serialization.load torch.jit.load
        torch.jit._serialization.load torch.package numpy.load numpy.lib.npyio.load numpy.lib._npyio_impl.load
        pandas.read_pickle pandas.io.pickle.read_pickle
        torch.utils._config_module joblib.numpy_pickle.load joblib.numpy_pickle_utils joblib.memory
        torch.utils.data.datapipes.utils.decoder.basichandlers
    """,
    _NETWORK: """
        socket socketserver ssl select selectors urllib urllib2 http httplib ftplib nntplib poplib smtplib
        telnetlib xmlrpc requests httpx aiohttp paramiko
    """,
    _FILES: """
        shutil builtins.open io.open io.FileIO _io.open _io.FileIO logging.FileHandler logging.handlers
        tempfile tarfile zipfile glob fileinput filecmp linecache mmap sqlite3 _sqlite3 syslog
        pathlib.Path.touch pathlib.Path.unlink pathlib.Path.write_bytes pathlib.Path.write_text
    """,
}
"""Modules and functions by which pickles are known to run code, or to reach what does, by what they do."""

_DOES = {name: what for what, names in _RUNNING.items() for name in names.split()}
_ALIASES = {
    **dict.fromkeys(("posix", "nt"), "os"),
    **dict.fromkeys(("__builtin__", "__builtins__"), "builtins"),
    **dict.fromkeys(("BaseHTTPServer", "SimpleHTTPServer", "CGIHTTPServer"), "http"),
    **dict.fromkeys(("xmlrpclib", "SimpleXMLRPCServer", "DocXMLRPCServer"), "xmlrpc"),
    "thread": "_thread",
    "SocketServer": "socketserver",
    "_socket": "socket",
    "_multiprocessing": "multiprocessing",
}
"""Other names of modules, such as those of Python 2, which unpickling translates."""
_WITHIN_NAMES = """
os sys subprocess builtins __builtins__ importlib ctypes shutil pty posix nt __globals__ __import__
__subclasses__ __getattribute__ __reduce__ __reduce_ex__ __code__
"""
_WITHIN = frozenset(_WITHIN_NAMES.split())
"""Attributes by which one gets from a harmless name to one that runs code: ``torch.hub.os.system``."""

_MAX_STEPS = 100

_VALUE_NAMES = """
    argparse.Namespace collections.Counter collections.deque collections.UserDict copyreg._reconstructor
    copy_reg._reconstructor copyreg.__newobj__ copyreg.__newobj_ex__ datetime.time datetime.timezone
    datetime.tzinfo decimal.Decimal fractions.Fraction typing.Any
    numpy.ndarray numpy.matrix numpy.memmap numpy.ma.core.MaskedArray numpy.bool_ numpy.bool numpy.str_
    numpy.bytes_ numpy.void numpy.object_ numpy.longlong numpy.ulonglong numpy.longdouble numpy.datetime64
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    torch.Tensor torch.nn.parameter.UninitializedParameter
    torch._C.Generator torch.serialization._get_layout torch.dtype torch.strided
    torch.nn.parallel.data_parallel.DataParallel torch.nn.parallel.distributed.DistributedDataParallel
    torch.distributed.checkpoint.filesystem._StorageInfo
    torch.channels_last torch.contiguous_format torch.preserve_format
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.Metadata
    omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode
    pytorch_lightning.utilities.parsing.AttributeDict lightning.fabric.utilities.data.AttributeDict
    lightning_fabric.utilities.data.AttributeDict
"""
_VALUES = frozenset(_VALUE_NAMES.split())
_VALUE = re.compile(
    r"(?:builtins|__builtin__)\.(?:object|int|long|float|str|unicode|bool|tuple|bytearray|slice|range|xrange)"
    r"|torch(?:\.cuda|\.storage)?\.[A-Za-z0-9_]+Storage"
    r"|torch(?:\.cuda)?(?:\.sparse)?\.[A-Z][A-Za-z0-9]*Tensor"
    r"|torch\.(?:u?int\d+|float\d+\w*|bfloat16|complex\d+|q?u?int\d+x?\d*|bool|half|double|long|short|float|int)"
    r"|torch\.(?:nn\.modules|optim|ao\.nn\.\w+\.modules)\.[a-z_]\w*\.[A-Z][A-Za-z0-9_]*"
    r"|torch\.distributed\.checkpoint\.metadata\.[A-Z_]\w*"
    r"|numpy\.(?:u?int|float|complex)\d+|numpy\.dtypes\.[A-Z]\w*DType"
    r"|numpy\.random\._pickle\.__\w+_ctor|ml_dtypes\.[a-z]\w*"
)
"""Names of a kind: element types, storages, and the modules and optimizers of torch itself."""


def would_run(name: str) -> str | None:
    """What a call of a name runs, where that can do more than build a value; None where it cannot.

    Examples
    --------
    >>> would_run("posix.system"), would_run("__builtin__.eval"), would_run("collections.OrderedDict")
    ('os.system', 'builtins.eval', None)
    >>> would_run("torch.serialization.os.system")
    'torch.serialization.os.system'
    """
    return None if what_it_does(name) is None else ".".join(_steps(name))


def what_it_does(name: str) -> str | None:
    """In words, what a name that runs something does.

    Examples
    --------
    >>> what_it_does("os.system"), what_it_does("my.Model")
    ('runs commands or programs', None)
    """
    steps = _steps(name)
    for prefix in _prefixes(steps):
        if prefix in _DOES:
            return _DOES[prefix]
    return _REACHES if not _WITHIN.isdisjoint(steps[1:]) else None


def _steps(name: str) -> list[str]:
    module, dot, rest = name.partition(".")
    return f"{_ALIASES.get(module, module)}{dot}{rest}".split(".", _MAX_STEPS)


def _prefixes(steps: list[str]) -> Iterator[str]:
    known = ""
    for step in steps:
        known = f"{known}.{step}" if known else step
        yield known


def builds_a_value(name: str) -> bool:
    """Whether a name is known to build a value and do no more.

    Examples
    --------
    >>> builds_a_value("torch.nn.modules.conv.Conv2d"), builds_a_value("my.Model")
    (True, False)
    """
    return name in _VALUES or _VALUE.fullmatch(name) is not None


def would_call(name: str) -> bool:
    """Whether a name is that of a function of other code, not of a class.

    Examples
    --------
    >>> would_call("evil.helper"), would_call("my.Model"), would_call("copyreg._reconstructor")
    (True, False, False)
    """
    return not builds_a_value(name) and name.rpartition(".")[2].lstrip("_")[:1].islower()
