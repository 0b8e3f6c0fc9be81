"""Parser for the PTX text that NVRTC / nvcc emit (no semantics here: see interp.py)."""

import re
import struct
from dataclasses import dataclass, field
from typing import Any

WIDTH = {
    "pred": 1,
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "tf32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "f32x2": 8,
    "b128": 16,
}


class PTXError(ValueError):
    pass


@dataclass(eq=False)
class Reg:
    name: str
    type: str


@dataclass(eq=False)
class Var:
    """A variable of space shared/global/const/local/param."""

    name: str
    space: str
    type: str
    align: int
    size: int  # bytes; 0 for an unsized extern array
    init: bytes | None = None
    relocs: list = field(default_factory=list)  # (byte offset, symbol, addend, generic)
    extern: bool = False
    func: Any = None


# operands
@dataclass(frozen=True)
class Imm:
    kind: str  # 'i', 'f32' or 'f64'
    value: int  # integer, or the bits of the float


@dataclass(frozen=True)
class Sym:  # a variable, function or label used as a value (+ offset)
    target: Any
    offset: int = 0


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Addr:  # [base + offset]; base: Reg, Var or None (absolute)
    base: Any
    offset: int = 0


@dataclass(frozen=True)
class Vec:
    items: tuple


@dataclass(frozen=True)
class Pair:  # a|b
    a: Any
    b: Any


@dataclass(frozen=True)
class Not:  # !%p
    reg: Any


@dataclass(frozen=True)
class Name:  # unresolved: a label or a function
    name: str


class Sink:  # _
    def __repr__(self):
        return "_"


SINK = Sink()


@dataclass(eq=False)
class Instr:
    op: str
    mods: tuple  # the dotted parts after the first
    args: list
    pred: Any = None
    neg: bool = False
    line: int = 0  # line of the PTX text
    loc: tuple | None = None  # (file, line) of the source
    text: str = ""
    pc: int = -1
    targets: list | None = None
    bad: str = ""  # why the operands could not be parsed

    @property
    def full(self):
        return ".".join((self.op,) + self.mods)


@dataclass(eq=False)
class Function:
    name: str
    entry: bool
    params: list = field(default_factory=list)
    rets: list = field(default_factory=list)
    regs: list = field(default_factory=list)
    vars: list = field(default_factory=list)  # local, shared and param variables inside
    body: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)  # .branchtargets
    directives: dict = field(default_factory=dict)
    extern: bool = False
    calls: set = field(default_factory=set)


@dataclass(eq=False)
class PTXModule:
    version: str = ""
    target: str = ""
    vars: dict = field(default_factory=dict)
    functions: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)


_TOK = re.compile(
    r"""[ \t\r]*(?:
  (?P<word>[%$_A-Za-z.][\w$]*(?:(?:\.|::)[\w$]+)*)
 |(?P<num>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
     |\d+\.\d*(?:[eE][-+]?\d+)?|\d+U?)
 |(?P<sym>[-+{}()\[\],;:|!@<>=]) | (?P<nl>\n) | (?P<com>//[^\n]*|/\*.*?\*/)
 |(?P<str>"(?:[^"\\]|\\.)*")
)""",
    re.X | re.S,
)


def _lex(text):
    out, line, i, text = [], 1, 0, text.rstrip()
    for m in _TOK.finditer(text):
        if m.start() != i:
            break
        i, k = m.end(), m.lastgroup
        if k == "nl":
            line += 1
        elif k == "com":
            line += m[k].count("\n")
        else:
            out.append((k, m[k], line))
            line += k == "str" and m[k].count("\n")
    if i < len(text):
        raise PTXError(f"line {line}: cannot read {text[i : i + 30]!r}")
    out.append(("eof", "", line))
    return out


def _number(s):
    if s[:2] in ("0f", "0F"):
        return Imm("f32", int(s[2:], 16))
    if s[:2] in ("0d", "0D"):
        return Imm("f64", int(s[2:], 16))
    if "." in s:
        return Imm("f64", struct.unpack("<Q", struct.pack("<d", float(s)))[0])
    s = s.rstrip("U")
    if s[:1] == "0" and len(s) > 1 and s[1] in "01234567":
        return Imm("i", int(s, 8))
    return Imm("i", int(s, 0))


SPECIAL = re.compile(
    r"%(n?tid|n?ctaid)\.[xyz]$|%(laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock_hi|"
    r"clock64|globaltimer(_lo|_hi)?|lanemask_(eq|lt|le|gt|ge)|dynamic_smem_size|"
    r"total_smem_size|aggr_smem_size|is_explicit_cluster|cluster_ctarank|"
    r"cluster_nctarank|(n?clusterid|cluster_n?ctaid)\.[xyz]|envreg\d+)$"
)


class _Parser:
    def __init__(self, text):
        self.t = _lex(text)
        self.i = 0
        self.lines = text.split("\n")
        self.mod = PTXModule()
        self.fn = None
        self.scopes = [{}]

    # -- token helpers
    def peek(self, k=0):
        return self.t[self.i + k][1]

    def kind(self, k=0):
        return self.t[self.i + k][0]

    def next(self):
        tok = self.t[self.i]
        self.i += 1
        return tok[1]

    def accept(self, s):
        if self.peek() == s:
            self.i += 1
            return True
        return False

    def expect(self, s):
        if self.peek() != s:
            self.fail(f"expected {s!r}, found {self.peek()!r}")
        self.i += 1

    def fail(self, msg):
        ln = self.t[self.i][2]
        raise PTXError(f"PTX line {ln}: {msg}: {self.lines[ln - 1].strip()}")

    def until_semicolon(self):
        while self.next() != ";":
            pass

    def lookup(self, name):
        for s in reversed(self.scopes):
            if name in s:
                return s[name]
        return None

    # -- module level
    def parse(self):
        while self.kind() != "eof":
            w = self.peek()
            if w == ".version":
                self.next()
                self.mod.version = self.next()
            elif w == ".target":
                self.next()
                self.mod.target = self.next()
                while self.accept(","):
                    self.next()
            elif w == ".address_size":
                self.next()
                if self.next() != "64":
                    self.fail("only .address_size 64")
            elif w == ".file":
                self.next()
                n = int(self.next())
                self.mod.files[n] = self.next().strip('"')
                while self.accept(","):
                    self.next()
            elif w == ".section":
                self.next()
                self.next()
                self.expect("{")
                depth = 1
                while depth:
                    x = self.next()
                    depth += (x == "{") - (x == "}")
            elif w in (".pragma", ".alias"):
                self.until_semicolon()
            elif w == ";":
                self.next()
            else:
                self.decl()
        return self.mod

    def decl(self):
        link = {}
        while self.peek() in (".visible", ".extern", ".weak", ".common", ".attribute"):
            w = self.next()
            if w == ".attribute":
                self.expect("(")
                while self.next() != ")":
                    pass
            link[w] = True
        w = self.peek()
        if w in (".entry", ".func"):
            return self.function(link)
        if w in (".global", ".const", ".shared"):
            for v in self.variable(".extern" in link):
                self.mod.vars[v.name] = v
                self.scopes[0][v.name] = v
            return None
        self.fail(f"unknown module directive {w!r}")
        return None

    def variable(self, extern=False):
        """.space [.align n] .type name[..] [= init] {, name..} ;  -> list of Var"""
        space = self.next()[1:]
        align, typ, vec = None, None, 1
        while self.peek().startswith("."):
            w = self.next()
            if w == ".align":
                align = int(self.next())
            elif w in (".v2", ".v4"):
                vec = int(w[2:])
            elif w == ".attribute":
                self.expect("(")
                while self.next() != ")":
                    pass
            elif w[1:] in WIDTH:
                typ = w[1:]
            else:
                self.fail(f"unknown attribute {w}")
        out = []
        while True:
            name = self.next()
            n, unsized = vec, False
            while self.accept("["):
                if self.accept("]"):
                    unsized = True
                    continue
                n *= _number(self.next()).value
                self.expect("]")
            size = 0 if unsized else n * WIDTH[typ]
            v = Var(name, space, typ, align or WIDTH[typ] * vec, size, extern=extern or unsized)
            if self.accept("="):
                self.initializer(v)
            out.append(v)
            if not self.accept(","):
                break
        if space != "param" or self.peek() == ";":
            self.expect(";")
        return out

    def initializer(self, v):
        w = WIDTH[v.type]
        data = bytearray()

        def item():
            if self.accept("{"):
                while not self.accept("}"):
                    item()
                    self.accept(",")
                return
            neg = self.accept("-")
            if self.kind() == "num":
                x = _number(self.next())
                val = -x.value if neg else x.value
                if x.kind == "f64" and v.type == "f32":
                    val = struct.unpack(
                        "<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", x.value))[0])
                    )[0]
                data.extend((val & ((1 << 8 * w) - 1)).to_bytes(w, "little"))
                return
            sym = self.next()
            generic = False
            if sym == "generic":
                self.expect("(")
                sym, generic = self.next(), True
                self.expect(")")
            add = 0
            if self.accept("+"):
                add = _number(self.next()).value
            v.relocs.append((len(data), sym, add, generic))
            data.extend(bytes(w))

        item()
        if not v.size:
            v.size, v.extern = len(data), False
        v.init = bytes(data).ljust(v.size, b"\0")

    # -- functions
    def param_list(self):
        out = []
        self.expect("(")
        while not self.accept(")"):
            if self.peek() == ".reg":
                self.fail(".reg parameters are not supported")
            if self.peek() != ".param":
                self.fail("expected .param")
            self.next()
            align, typ, ptr = None, None, False
            while self.peek().startswith("."):
                w = self.next()
                if w == ".align":
                    a = int(self.next())
                    align = align if ptr else a
                elif w[1:] in WIDTH:
                    typ = w[1:]
                elif w == ".ptr":
                    ptr = True
            name = self.next()
            size = WIDTH[typ]
            while self.accept("["):
                if self.accept("]"):
                    continue
                size *= _number(self.next()).value
                self.expect("]")
            out.append(Var(name, "param", typ, align or WIDTH[typ], size))
            self.accept(",")
        return out

    def function(self, link):
        entry = self.next() == ".entry"
        f = Function("", entry)
        if self.peek() == "(":
            f.rets = self.param_list()
        f.name = self.next()
        if self.peek() == "(":
            f.params = self.param_list()
        while self.peek() not in ("{", ";"):
            d = self.next()
            vals = []
            while self.kind() == "num" or self.peek() == ",":
                if not self.accept(","):
                    vals.append(_number(self.next()).value)
            f.directives[d] = vals
        for p in f.params + f.rets:
            p.func = f
        if self.accept(";"):
            f.extern = True
            if f.name not in self.mod.functions:
                self.mod.functions[f.name] = f
            return
        self.mod.functions[f.name] = f
        self.fn = f
        self.scopes = self.scopes[:1] + [{p.name: p for p in f.params + f.rets}]
        self.loc = None
        self.label_scopes = [{}]
        self.fixups = []
        self.block()
        self.scopes = self.scopes[:1]
        self.fn = None

    def block(self):
        self.expect("{")
        self.scopes.append({})
        self.label_scopes.append({})
        first = len(self.fn.body)
        while not self.accept("}"):
            self.statement()
        labels = self.label_scopes.pop()
        # resolve the labels this block declares, for the instructions inside it
        for ins in self.fn.body[first:]:
            if ins.targets:
                ins.targets = [labels.get(t, t) if isinstance(t, str) else t for t in ins.targets]
        for name, tab in list(self.fn.tables.items()):
            self.fn.tables[name] = [labels.get(t, t) if isinstance(t, str) else t for t in tab]
        self.fn.labels.update({n: p for n, p in labels.items() if n not in self.fn.labels})
        self.scopes.pop()

    def statement(self):
        w = self.peek()
        if w == "{":
            return self.block()
        if w == ";":
            self.next()
            return None
        if self.kind() == "word" and self.peek(1) == ":":
            self.next()
            self.next()
            if self.peek() == ".branchtargets":
                self.next()
                tab = [self.next()]
                while self.accept(","):
                    tab.append(self.next())
                self.expect(";")
                self.fn.tables[w] = tab
            elif self.peek() in (".callprototype", ".calltargets"):
                self.until_semicolon()
            else:
                self.label_scopes[-1][w] = len(self.fn.body)
            return None
        if w.startswith("."):
            return self.directive()
        self.instruction()
        return None

    def directive(self):
        w = self.peek()
        if w == ".reg":
            self.next()
            typ = self.next()[1:]
            if typ in ("v2", "v4") or typ not in WIDTH:
                self.fail(f".reg of type {typ} is not supported")
            while True:
                name = self.next()
                names = [name]
                if self.accept("<"):
                    names = [f"{name}{k}" for k in range(int(self.next()))]
                    self.expect(">")
                for n in names:
                    r = Reg(n, typ)
                    self.scopes[-1][n] = r
                    self.fn.regs.append(r)
                if not self.accept(","):
                    break
            self.expect(";")
        elif w in (".local", ".shared", ".param", ".const", ".global"):
            for v in self.variable():
                v.func = self.fn
                self.scopes[-1][v.name] = v
                self.fn.vars.append(v)
        elif w == ".loc":
            self.next()
            f, ln = int(self.next()), int(self.next())
            self.next()
            while self.accept(","):
                self.next()  # function_name X[+n] / inlined_at f l c
                while (
                    self.kind() in ("num",)
                    or self.peek() == "+"
                    or (
                        self.kind() == "word"
                        and self.peek(1) in (",", "+")
                        and self.peek(-1) == "function_name"
                    )
                ):
                    self.next()
            if ln:
                self.loc = (f, ln)
        elif w == ".pragma":
            self.until_semicolon()
        else:
            self.fail(f"unknown directive {w}")

    # -- instructions
    def operand(self):
        if self.accept("{"):
            items = []
            while not self.accept("}"):
                items.append(self.operand())
                self.accept(",")
            return Vec(tuple(items))
        if self.accept("["):
            if self.kind() == "num" or self.peek() == "-":
                a = Addr(None, self.signed())
            else:
                name = self.next()
                b = self.lookup(name)
                if b is None:
                    self.i -= 1
                    self.fail(f"unknown name {name!r} in an address")
                off = 0
                if self.peek() in ("+", "-"):
                    plus = self.next() == "+"
                    off = self.signed() * (1 if plus else -1)
                a = Addr(b, off)
            self.expect("]")
            return a
        if self.accept("!"):
            return Not(self.operand())
        if self.kind() == "num" or self.peek() == "-":
            neg = self.accept("-")
            x = _number(self.next())
            if neg:
                if x.kind == "i":
                    return Imm("i", -x.value)
                return Imm(x.kind, x.value ^ (1 << (31 if x.kind == "f32" else 63)))
            return x
        name = self.next()
        if name == "_":
            return SINK
        b = self.lookup(name)
        if isinstance(b, Reg):
            return b
        if isinstance(b, Var):
            off = 0
            if self.peek() in ("+", "-"):
                plus = self.next() == "+"
                off = self.signed() * (1 if plus else -1)
            return Sym(b, off)
        if SPECIAL.match(name):
            return Special(name)
        if name == "WARP_SZ":
            return Imm("i", 32)
        if name.startswith("%"):
            self.i -= 1
            self.fail(f"unknown register {name}")
        return Name(name)

    def signed(self):
        neg = self.accept("-")
        v = _number(self.next()).value
        return -v if neg else v

    def instruction(self):
        line = self.t[self.i][2]
        pred, neg = None, False
        if self.accept("@"):
            neg = self.accept("!")
            pred = self.lookup(self.next())
            if not isinstance(pred, Reg):
                self.fail("unknown guard predicate")
        op, *mods = self.next().split(".")
        args = []
        ins = Instr(op, tuple(mods), args, pred, neg, line, self.loc, self.lines[line - 1].strip())
        if op == "call":
            self.call(ins)
        else:
            try:
                while not self.accept(";"):
                    a = self.operand()
                    if self.accept("|"):
                        a = Pair(a, self.operand())
                    args.append(a)
                    if self.peek() not in (",", ";"):
                        self.fail(f"unexpected {self.peek()!r}")
                    self.accept(",")
            except PTXError as e:  # an operand form not known here: an error only if it is executed
                ins.bad = str(e)
                self.until_semicolon()
            if op == "bra":
                ins.targets = [args[0].name]
            elif op == "brx":
                ins.targets = []
        self.fn.body.append(ins)

    def call(self, ins):
        """args := (rets, callee, params)"""

        def names():
            out = []
            self.expect("(")
            while not self.accept(")"):
                v = self.lookup(self.next())
                if not isinstance(v, Var):
                    self.fail("call operands must be .param variables")
                out.append(v)
                self.accept(",")
            return out

        rets, params = [], []
        if self.peek() == "(":
            rets = names()
            self.expect(",")
        callee = self.next()
        if self.accept(","):
            if self.peek() == "(":
                params = names()
            if self.accept(","):
                self.next()
        self.expect(";")
        ins.args[:] = [rets, callee, params]
        self.fn.calls.add(callee)


def parse(text):
    p = _Parser(text)
    mod = p.parse()
    for f in mod.functions.values():
        for ins in f.body:
            for t in ins.targets or ():
                if isinstance(t, str):
                    raise PTXError(f"PTX line {ins.line}: unknown label {t}")
        for n, tab in f.tables.items():
            for t in tab:
                if isinstance(t, str):
                    raise PTXError(f"unknown label {t} in {n}")
    return mod
