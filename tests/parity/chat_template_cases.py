"""Conversations, and templates that use each construct, for make_chat_template_goldens.py."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place, e.g. \"Zürich\" <now>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": None},
                "days": {"type": ["integer", "null"], "minimum": 1.5},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
            },
            "required": ["place"],
        },
        "return": {"type": "string", "description": "text"},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Oslo", "days": 2, "ok": True}}}

CONTEXTS = {
    "none": {},
    "values": {
        "s": "Hello, World", "u": "Ünïcode ß 日本語 🙂 ǆ", "n": 7, "m": -3, "f": 2.5, "big": 1e22, "t": True, "nil": None,
        "l": [3, 1, 2], "e": [], "w": ["b", "A", "c", "a", "B"], "d": {"b": 1, "a": [1, "x"], "C": None}, "q": "it's \"quoted\"\n\t\\ \u0007",
        "rows": [{"n": "x", "v": 2, "k": {"z": 1}}, {"n": "y", "v": 1, "k": {"z": 2}}, {"n": "X", "v": 3}],
        "items_key": {"items": 5, "keys": "k"}, "text": "  one\n two\n\nthree  ",
    },
    "user": {"messages": [{"role": "user", "content": "Hi there"}]},
    "system": {"messages": [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " 2+2? \n"}]},
    "turns": {"messages": [
        {"role": "system", "content": "You are kind."}, {"role": "user", "content": "Grüße 🙂 日本"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHallo!"}, {"role": "user", "content": "<tag> & \"q\" {{ x }}"}]},
    "answered": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "empty": {"messages": []},
    "blank": {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": None}]},
    "twice": {"messages": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]},
    "starts_with_assistant": {"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "two"}]},
    "tools": {"messages": [{"role": "user", "content": "Weather?"}], "tools": [WEATHER]},
    "tool_call": {"messages": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"c\": 3}"},
        {"role": "assistant", "content": "3 degrees"}, {"role": "user", "content": "Thanks"}], "tools": [WEATHER]},
    "two_calls": {"messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see", "reasoning_content": "think", "tool_calls": [CALL, dict(CALL, id="call00002")]},
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "3"},
        {"role": "tool", "tool_call_id": "call00002", "name": "get_weather", "content": "4"}], "tools": [WEATHER, WEATHER], "enable_thinking": False},
    "string_arguments": {"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "r"}], "tools": [WEATHER]},
    "parts": {"messages": [
        {"role": "system", "content": [{"type": "text", "text": "sys"}]},
        {"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "image"}, {"type": "text", "text": "this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]},
    "thinking": {"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because", "thinking": "because"},
        {"role": "user", "content": "r"}], "enable_thinking": True, "documents": [{"title": "T", "text": "body"}],
        "date_string": "01 Jan 2025", "reasoning_effort": "high", "builtin_tools": ["browser"]},
}

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""  # SmolLM2-Instruct's template, Apache-2.0

TOOLS = """{%- macro kind(type) -%}
  {%- if type is string -%}{{ {'string': 'str', 'integer': 'int'}[type] | default('any') }}
  {%- elif type is iterable -%}{%- for t in type -%}{{ kind(t) }}{%- if not loop.last %} | {% endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=-1, system='') -%}
{%- for m in messages -%}
  {%- if m.role == 'user' and m.content is string and not (m.content.startswith('<x>') and m.content.endswith('</x>')) -%}
    {%- set ns.last = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- if tools is defined and tools %}
# Tools
{% for tool in tools | map(attribute='function') %}
{{ loop.index }}. {{ tool.name }}({% for key, schema in tool.parameters.properties | dictsort %}{{ key }}: {{ kind(schema.type) }}{{ ", " if not loop.last }}{% endfor %})
{{ tool | tojson }}
{{ tool.parameters | tojson(indent=2) }}
{% endfor %}
{%- endif %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else (message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') if message.content else '') %}
{{ '<|' ~ message.role ~ '|>' }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}

<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson if call.function.arguments is mapping else call.function.arguments }}}</call>
{%- endfor %}
{%- endif %}
{{ content | trim }}{{ ' (last)' if loop.index0 == ns.last }}
{%- endfor %}
{%- if add_generation_prompt is defined and add_generation_prompt %}
<|assistant|>
{%- endif %}"""

THINK = """{%- for message in messages[::-1] %}{% if message.role == 'assistant' and message.content and '</think>' in message.content %}
{%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
[{{ reasoning }}|{{ answer }}]
{%- else %}[{{ message.role }}]{% endif %}{% endfor %}"""

ALTERNATE = """{{ bos_token | default('<s>') }}{% if messages and messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{% generation %}{{ ' ' + content.strip() + ' ' + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"""

CHATS = [name for name, context in CONTEXTS.items() if "messages" in context]

EXPRESSIONS = r"""
1 + 2 * 3 ** 2 ;; 7 // 2 ;; -7 // 2 ;; 7 % -3 ;; -7 % 3 ;; 7 / 2 ;; 2 ** -1 ;; 2 ** 3 ** 2 ;; -2 ** 2 ;; 7.5 // 2 ;; -7.5 % 2 ;; 1_000 ;; 0x1F ;; 0b101 ;; 0o17 ;; 1e3 ;; 1.5e-7 ;; 1e16 ;; 123456789012345680.0 ;; 0.1 + 0.2
1e22 ;; big ;; -0.0 ;; f ;; f * 2 ;; n / 7 ;; 10 ** 15 / 1 ;; true + true ;; n + t ;; not n ;; not not e ;; nil ;; t ;; none ;; True and 0 or 'x' ;; 1 < 2 < 3 ;; 1 < 3 < 2 ;; 1 == 1.0 ;; 1 == true ;; '1' == 1 ;; 'a' < 'b' ;; [1, 2] < [1, 3] ;; l == [3, 1, 2]
(1, 2) == [1, 2] ;; d == {'a': [1, 'x'], 'b': 1, 'C': none} ;; 'a' in d ;; 'z' not in d ;; 'ell' in s ;; 2 in l ;; 5 not in l ;; n is odd ;; n is even ;; n is divisibleby 7 ;; n is divisibleby(2) ;; n in [7] and m in [-3]
s ;; u ;; d ;; l ;; rows ;; q ;; [q] ;; [u, nil, t, f] ;; (1,) ;; () ;; {} ;; {'a': (1, 2)} ;; 'a' 'b' ;; 'a' ~ 1 ~ none ~ true ~ 1.0 ;; 'tab\t/new\nline \x41\u00e9\U0001F642 \q \' \\'
s[0] ;; s[-1] ;; s[1:4] ;; s[::-1] ;; s[-3:] ;; s[:-3] ;; s[::2] ;; s[10:2:-2] ;; u[8:11] ;; u[-1] ;; u[::-1] ;; l[1:] ;; l[::-1] ;; l[-1] ;; l[5] ;; l[5] is defined ;; s[99] ;; (1, 2, 3)[1:] ;; l[none:2] ;; d['a'][1] ;; d.a.1 ;; d.a[0] ;; d['nope'] ;; d.nope is undefined ;; l.0 ;; s.nope ;; nil.x ;; n.x
items_key['items'] ;; items_key['keys'] ;; d.items() | list ;; d.keys() | list ;; d.values() | list ;; d.get('b') ;; d.get('z') ;; d.get('z', 5) ;; d | items | list ;; d | dictsort ;; d | dictsort(reverse=true) ;; d | length ;; rows[0] | dictsort(by='value') | length
s.upper() ;; s.lower() ;; u.upper() ;; u.lower() ;; u.title() ;; u.capitalize() ;; s.split() ;; s.split(',') ;; s.split('l', 1) ;; s.rsplit('l', 1) ;; text.split('\n') ;; text.splitlines() ;; text.strip() ;; text.lstrip() ;; text.rstrip() ;; 'xxaxx'.strip('x') ;; 'xyaxy'.lstrip('yx') ;; 'a\u2003b c'.split() ;; 'a  b'.split(' ') ;; '  a b c '.rsplit(none, 1) ;; ' a b c'.split(none, 1)
s.startswith('Hell') ;; s.startswith(('x', 'H')) ;; s.endswith('ld') ;; s.endswith('x') ;; s.startswith('W', 7) ;; s.replace('l', 'L') ;; s.replace('l', 'L', 1) ;; 'abc'.replace('', '-') ;; s.find('o') ;; s.find('zz') ;; s.rfind('o') ;; u.find('日') ;; s.index('W') ;; s.count('l') ;; ', '.join(['a', 'b']) ;; ', '.join('abc') ;; '12'.isdigit() ;; ''.isdigit() ;; 'ab'.isalpha() ;; 'a1'.isalnum() ;; ' '.isspace() ;; 'AB'.isupper() ;; 'ab1'.islower() ;; 'a'.center(4) ~ '/' ;; '5'.zfill(3) ;; '-5'.zfill(4) ;; 'a'.ljust(3, '.') ;; 'a'.rjust(3) ;; 'a=b'.partition('=') ;; 'a=b=c'.rpartition('=') ;; 'ab'.partition('x') ;; 'abc'.removeprefix('a') ;; 'abc'.removesuffix('bc')
'{} and {}'.format(1, 'x') ;; '{0}{1}{0} {k}'.format(1, 2, k='v') ;; '{{}}'.format() ;; '%s is %d, %5.2f/%-5s/%05d/%x/%r/%%' % ('a', 7, 3.14159, 'b', -42, 255, 'q') ;; '%s' % 5 ;; '%(a)s' % {'a': 1} ;; '%s' | format(3) ;; '%.3s' % 'abcdef' ;; '%+d % d' % (3, 4) ;; '%g %e' % (0.5, 12345.678)
text | trim ;; 'xax' | trim('x') ;; 5 | trim ;; s | upper ;; s | lower ;; 'hello wOrld-foo (bar)' | title ;; 'hELLO' | capitalize ;; s | length ;; u | length ;; e | length ;; d | count ;; w | join ;; w | join(', ') ;; [1, none, 2.0] | join('-') ;; rows | join(',', attribute='n') ;; s | join('.')
d | tojson ;; u | tojson ;; q | tojson ;; rows | tojson ;; d | tojson(indent=2) ;; [] | tojson(indent=4) ;; {} | tojson(indent=1) ;; [1, [2, {'a': []}]] | tojson(indent=2) ;; u | tojson(ensure_ascii=true) ;; {'b': 1, 'a': 2} | tojson(sort_keys=true) ;; d | tojson(separators=(',', ':')) ;; 1.0 | tojson ;; 1e22 | tojson ;; nil | tojson ;; t | tojson ;; (1, 2) | tojson ;; {1: 2, true: 3, none: 4, 1.5: 6} | tojson ;; '<a href="x">&\'' | tojson ;; d | tojson(indent='\t')
nope | default('x') ;; nope | default ;; nil | default('x') ;; nil | default('x', true) ;; '' | d('y', boolean=true) ;; nope.x | default('z') ;; nil | select | list ;; nope | map('upper') | list ;; 0 | selectattr('x') | list;;  e | first ;; l | first ;; l | last ;; s | first ;; s | last ;; d | first ;; l | sum ;; rows | sum(attribute='v') ;; l | min ;; l | max ;; w | min ;; e | max ;; rows | max(attribute='v')
l | sort ;; l | sort(reverse=true) ;; w | sort ;; w | sort(case_sensitive=true) ;; w | sort(true) ;; rows | sort(attribute='v') | map(attribute='n') | list ;; rows | sort(attribute='n,v') | map(attribute='v') | list ;; w | unique | list ;; w | unique(true) | list ;; w | map('upper') | list ;; w | map('replace', 'a', 'z') | join ;; rows | map(attribute='k.z') | list ;; rows | map(attribute='k.z', default=0) | list ;; rows | map(attribute='k', default={}) | list
l | select('odd') | list ;; l | reject('odd') | list ;; l | select('greaterthan', 1) | list ;; [0, 1, '', 'a'] | select | list ;; rows | selectattr('k') | list | length ;; rows | selectattr('v', 'equalto', 2) | map(attribute='n') | list ;; rows | rejectattr('v', 'in', [1, 2]) | list | length ;; rows | selectattr('k', 'defined') | list | length ;; rows | selectattr('v', '>=', 2) | list | length ;; l | select('in', [1, 2]) | first ;; (l | select('odd')) is iterable ;; (e | select) and true
l | reverse | list ;; s | reverse ;; (l | reverse) is sequence ;; l | list ;; s | list ;; 'abc' | list | reverse | list ;; l | batch(2) | list ;; l | batch(2, 0) | list ;; rows | groupby('v') | length ;; w | groupby('0') | list | length
'12' | int ;; '12.7' | int ;; 'x' | int ;; 'x' | int(-1) ;; ' 42 ' | int ;; '0x1f' | int(base=16) ;; '1f' | int(0, 16) ;; 3.99 | int ;; -3.99 | int ;; true | int ;; nil | int ;; [] | int(3) ;; '3.5' | float ;; 'x' | float ;; 'x' | float(1.5) ;; 7 | float ;; '1e3' | float ;; m | abs ;; -2.5 | abs ;; 2.5 | round ;; 3.5 | round ;; 2.675 | round(2) ;; 2.5 | round(0, 'ceil') ;; 2.5 | round(method='floor') ;; 7 | round ;; 1234 | round(-2) ;; 42.55 | round(1, 'floor')
text | indent ;; text | indent(2, true) ;; text | indent(2, first=true, blank=true) ;; 'a\nb' | indent('>>') ;; '<a b="c">&\'' | escape ;; '<' | e ;; '<' | safe ;; 5 | string ~ 1 ;; nil | string ;; s | replace('l', 'L') ;; s | replace('l', 'L', 1) ;; 123 | replace(2, 'x') ;; s | wordcount ;; s | center(20) ~ '/' ;; s | string | length ;; d | attr('get') is callable
nope is defined ;; nope is undefined ;; nil is none ;; s is string ;; n is number ;; t is number ;; f is number ;; n is integer ;; t is integer ;; f is float ;; t is boolean ;; n is boolean ;; t is true ;; t is false ;; e is false ;; d is mapping ;; l is mapping ;; l is iterable ;; s is iterable ;; n is iterable ;; d is iterable ;; l is sequence ;; s is sequence ;; d is sequence ;; n is sequence ;; nope is iterable ;; nope is sequence ;; nope is none ;; n is eq 7 ;; n is equalto(7) ;; n is ne 7 ;; n is gt 3 ;; n is lt 3 ;; n is ge 7 ;; n is le 6 ;; n is in [7, 8] ;; n is not in [7] ;; s is not string ;; nil is not none ;; n is sameas n ;; 1 is sameas true ;; s is upper ;; 'A' is upper ;; 'a' is lower ;; range is callable ;; 'upper' is filter ;; 'zzz' is filter ;; 'odd' is test ;; n is defined and s is string ;; n is odd and not m is even ;; (n is odd) == true ;; x is defined or n
'a' if t else 'b' ;; 'a' if e else 'b' ;; 'a' if e ;; ('a' if e) is undefined ;; 'a' if e else 'b' if t else 'c' ;; 1 if n > 5 and m < 0 else 2 ;; [1 if t else 2, 3] ;; (1, 2) if t else 3 ;; nope or 'x' ;; nope and 'x' ;; e or nil or 0 ;; not nope ;; nope == nope2 ;; nope == none ;; [] == e ;; nope ~ 'x' ;; [nope]
range(5) | list ;; range(2, 5) | list ;; range(10, 0, -3) | list ;; range(0) | list ;; range(3) | length ;; dict(a=1, b=2) ;; dict({'a': 1}, b=2) ;; dict([['x', 1]]) ;; namespace(a=5).a ;; l + [4] ;; (1,) + (2,) ;; [0] * 3 ;; 'ab' * 2 ;; 3 * 'x' ;; 'x' * -1 ;; l | length > 2 ;; l | length + 1 ;; -l | length ;; -n | abs ;; (-n) ;; abs ;; - n + 8 ;; 1 -1 ;; n-1 ;; [1,2,3,][1] ;; {'a':1,}['a'] ;; {1: 'a', 1.0: 'b'} ;; [[1, 2], [3]] | sum(start=[]) ;; s | list | unique | list | length
1 + 'a' ;; 'a' + 1 ;; nope + 1 ;; nope.x ;; nope() ;; n() ;; l.append(4) ;; d.update({}) ;; 1 < 'a' ;; nope < 1 ;; 1 / 0 ;; 1 % 0 ;; l | sort(attribute='x.y') ;; [1, 'a'] | sort ;; 5 | length ;; 5 | list ;; 5 in 5 ;; 1 in 'a' ;; 'a' | abs ;; 'a'.index('z') ;; 'a'.split('') ;; s.upper(1) ;; s.nope() ;; s | upper(1) ;; {[]: 1} ;; d[[1]] ;; [1, 2] + (3,) ;; - 'a' ;; '%d' % 'x' ;; '%s %s' % 1 ;; 'a%' % 1 ;; range() | list ;; range(1, 2, 0) ;; l[::0] ;; '{} {}'.format(1) ;; nope | tojson ;; (l | select) | tojson ;; raise_exception('x') ;; nope | int ;; namespace(_x=1) ;; nope[0] ;; nil + 1 ;; none | lower + 1 ;; s | replace('a') ;; d | join(1, 2, 3) ;; (e | first).x ;; 'x' | round ;; (l | select) | last ;; {'a': 1} | tojson(indent=[])
"""

STATEMENTS = [
    "{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}", "{% if nope %}a{% endif %}b", "{% if e %}a{% elif d %}b{% endif %}",
    "{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ '' if loop.last else ', ' }}{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }};{% endfor %}",
    "{% for x in l %}[{{ loop.previtem }},{{ x }},{{ loop.nextitem }}]{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in e %}a{% else %}none{% endfor %}", "{% for x in nope %}a{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}none{% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for (a, b) in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% break %}{% else %}else{% endfor %}", "{% for x in l %}{% continue %}{% else %}else{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}", "{% for x in l %}{% for y in w %}{{ loop.depth }}{{ loop.index }}{% endfor %}{{ loop.depth0 }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in l[1:] + [9] %}{{ x }}{% endfor %}", "{% for x in range(3) if x is odd %}{{ x }}{% endfor %}",
    "{% set ns = namespace(done=false) %}{% for x in l if not ns.done %}{{ x }}{% set ns.done = x == 1 %}{% endfor %}",
    "{% set it = l | select('odd') %}{% for x in it %}{{ x }}{% endfor %}{% for x in it %}again{% else %}spent{% endfor %}{{ it is iterable }}",
    "{% set it = l | map('string') %}{{ it | first }}{{ it | join }}", "{% set it = l | select %}{{ 1 in it }}{{ it | list }}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set ns = namespace(x=1, l=[]) %}{% for i in l %}{% set ns.x = ns.x + i %}{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.x }}{{ ns.l }}{{ ns.nope is defined }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}{{ ns['a'] }}", "{% set n.x = 1 %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, %}{{ a }}",
    "{% set x %}  <b>{{ n }}</b>\n{% endset %}[{{ x }}]{{ x is string }}", "{% set x | upper | replace('A', 'z') %}a{{ 'b' }}{% endset %}{{ x }}",
    "{% set ns = namespace() %}{% set ns.t %}abc{% endset %}{{ ns.t }}", "{% set x %}{% set y = 5 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}",
    "{% macro f(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c='z') }} {{ f(b=3, a=0) }} {{ f(1, 2, 3) }} {{ f() }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 5) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ f() }}", "{% macro f() %}{{ n }}{% set n = 1 %}{% endmacro %}{{ f() }}{{ n }}",
    "{% macro f(a) %}[{{ caller() }}{{ a }}]{% endmacro %}{% call f(1) %}body{{ n }}{% endcall %}", "{% macro f() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) f() %}{{ a }}-{{ b }}{% endcall %}",
    "{% macro f() %}a{% endmacro %}{{ f() | upper }}{{ f() ~ 'b' }}{{ f() is string }}{{ f is callable }}", "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(*[1]) }}{{ f(**{'x': 2}) }}",
    "{% for i in l %}{% macro g() %}<{{ i }}>{% endmacro %}{{ g() }}{% endfor %}", "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with %}{% set z = 1 %}{% endwith %}{{ z is defined }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | trim %} aaa {% endfilter %}|", "{% generation %}x{{ n }}{% set y = 1 %}{% endgeneration %}{{ y is defined }}",
    "{% raw %}{{ not }} {% if %}{% endraw %}", "a {%- raw -%}  x  {%- endraw -%} b", "{% raw %}\n  {{ x }}\n{% endraw %}\nz", "  {% raw %} a {% endraw %}  \nb",
    "a{# comment #}b", "a {#- comment -#} b", "  {# c #}  \nb", "a\n  {# c #}\nb", "{#\n multi\n#}\nx", "{##}", "a\n   {#- c #}\nb", "a\n {#+ c +#}\nb",
    "a\n  {% if t %}\n  b\n  {% endif %}\nc\n", "a\n  {%- if t -%}\n  b\n  {%- endif %}\nc", "a\n  {%+ if t %}\n  b\n  {%+ endif +%}\nc", "x {% if t %} y {% endif %} z", "{% if t %}\n\n a{% endif %}\n\n\n",
    "a  {{ n }}  b", "a  {{- n -}}  b", "a\n{{- n }}\nb", "a\n  {{ n -}}\n\n  b", "  {{ n }}\n", "\n\n{{ n }}\n\n", "a\r\nb\rc {{ n }}\r\n", "{{ n -}}\n  {% if t %}x{% endif %}", "   {% if t %}x{% endif %}",
    "{{ n }}   {% if t %}x{% endif %}", "{% if t %}   {% if t %}x{% endif %}   {% endif %}", "{%if t%}x{%endif%}", "{{n}}{{-n-}}{{ - n }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ '}}' }}{{ '%}' }}", "{{ '{{' }}",
    "{% set a = '%}' %}{{ a }}", "{{ n, s }}", "{ {% if t %}{{ '}' }}{% endif %} }", "{{{'a': 1}.a}}", "{{ [1,\n 2] }}", "#} %} }} text", "{{ 'multi\nline' }}", "{% if n\n > 5 %}y{% endif %}", "{%- set x = 1 -%}  {{ x }}  {%- set y = 2 %}\n{{ y }}",
    "{{ x", "{% if %}{% endif %}", "{% endif %}", "{% for x l %}{% endfor %}", "{{ 1 + }}", "{{ (1 }}", "{{ ] }}", "{% set 1 = 2 %}", "{% break %}", "{# open", "{{ 'open }}", "{% raw %} x", "{{ a b }}", "{% macro f(a=1, b) %}{% endmacro %}", "{% set none = 1 %}",
    "{{ f(a=1, 2) }}", "{% if t %}{% else %}", "{{ 1 is odd is even }}", "{{ n.items }}", "{{ s | nope }}", "{% nope %}", "{{ $ }}", "{% if t %}a{% if e %}b{% else %}c{% endif %}d{% endif %}", "{% if e %}{{ 1 | nope }}{% endif %}ok",
    "{% set messages = [{'role': 'x'}] %}{{ messages[0].role }}", "{% set j = joiner('|') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set loop_messages = l %}{% for x in loop_messages %}{% if not loop.first %},{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% set ns = namespace(v=x) %}{{ ns.v }}{% endfor %}{{ ns is defined }}", "{{ loop is defined }}", "{% for i in l %}{% set s = i %}{% endfor %}{{ s }}",
]

CASES = {name: [CHATML, TOOLS, THINK, ALTERNATE] for name in CHATS}
CASES["values"] = ["{{ " + part.strip() + " }}" for line in EXPRESSIONS.strip().splitlines() for part in line.split(";;")] + STATEMENTS
