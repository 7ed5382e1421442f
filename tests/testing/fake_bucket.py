"""An emulator of Cloud Storage's JSON API: objects in memory, one bucket.

As much of it as gcsfs and TensorStore use, with generations and conditions,
without which Orbax's database of arrays cannot be written.
"""

from http import server
import json
import re
import threading
import urllib.parse
import uuid

BUCKET = 'shop'


class FakeBucket:
  """The server; `url` is what STORAGE_EMULATOR_HOST names."""

  def __init__(self):
    self.lock = threading.Lock()
    self.objects = {}  # name: (generation, content)
    self.uploads = {}  # id: [name, content], not complete yet
    self.generation = 1
    handler = type('Handler', (_Handler,), {'bucket': self})
    self._server = server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    self._server.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  bucket = None

  def log_message(self, *args):
    pass

  def _answer(self, status, content=b'', **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _about(self, name):
    generation, content = self.bucket.objects[name]
    return {
      'kind': 'storage#object',
      'bucket': BUCKET,
      'name': name,
      'id': f'{BUCKET}/{name}/{generation}',
      'size': str(len(content)),
      'generation': str(generation),
      'metageneration': '1',
      'updated': f'2026-01-01T00:{generation // 60 % 60:02}:'
      f'{generation % 60:02}.000Z',
    }

  def _keep(self, name, content, query):
    """Stores an object if it still is of the generation that is asked for."""
    current = self.bucket.objects.get(name, (0,))[0]
    wanted = query.get('ifGenerationMatch')
    if wanted is not None and int(wanted) != current:
      self._answer(412, {'error': {'code': 412}})
      return
    self.bucket.generation += 1
    self.bucket.objects[name] = self.bucket.generation, content
    self._answer(200, self._about(name))

  def _handle(self):
    length = int(self.headers.get('Content-Length') or 0)
    body = self.rfile.read(length)
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    match = re.fullmatch(
      r'(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?', url.path
    )
    with self.bucket.lock:
      if not match or match[2] != BUCKET:
        self._answer(404, {'error': {'code': 404, 'message': 'no bucket'}})
      elif match[1] == 'upload':
        self._upload(query, body)
      elif match[3]:
        self._object(urllib.parse.unquote(match[3]), query, match[1])
      elif url.path.endswith('/o'):
        self._list(query)
      else:
        self._answer(200, {'kind': 'storage#bucket', 'name': BUCKET})

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _object(self, name, query, download):
    if name not in self.bucket.objects:
      self._answer(404, {'error': {'code': 404, 'message': 'no object'}})
      return
    generation, content = self.bucket.objects[name]
    if self.command == 'DELETE':
      wanted = query.get('ifGenerationMatch')
      if wanted is not None and int(wanted) != generation:
        self._answer(412, {'error': {'code': 412}})
        return
      del self.bucket.objects[name]
      self._answer(204)
    elif query.get('ifGenerationNotMatch') == str(generation):
      self._answer(304)
    elif query.get('alt') == 'media' or download:
      self._media(generation, content)
    else:
      self._answer(200, self._about(name))

  def _media(self, generation, content):
    headers = {'x_goog_generation': str(generation)}
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not span:
      self._answer(200, content, **headers)
      return
    total = len(content)
    if span[1]:
      first, last = int(span[1]), int(span[2] or total - 1)
    else:
      first, last = total - int(span[2]), total - 1
    last = min(last, total - 1)
    if first > last:
      self._answer(416)
      return
    headers['Content_Range'] = f'bytes {first}-{last}/{total}'
    self._answer(206, content[first : last + 1], **headers)

  def _list(self, query):
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    found, folders = [], set()
    for name in sorted(self.bucket.objects):
      if not name.startswith(prefix) or name < query.get('startOffset', ''):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
      else:
        found.append(self._about(name))
    self._answer(
      200,
      {'kind': 'storage#objects', 'items': found, 'prefixes': sorted(folders)},
    )

  def _upload(self, query, body):
    kind = query.get('uploadType')
    if 'upload_id' in query:
      upload = self.bucket.uploads[query['upload_id']]
      upload[1] += body
      if self.headers['Content-Range'].endswith('/*'):
        self._answer(308, Range=f'bytes=0-{len(upload[1]) - 1}')
      else:
        del self.bucket.uploads[query['upload_id']]
        self._keep(*upload, query)
    elif kind == 'resumable':
      name = query.get('name') or json.loads(body)['name']
      key = uuid.uuid4().hex
      self.bucket.uploads[key] = [name, b'']
      self._answer(
        200,
        Location=(
          f'{self.bucket.url}/upload/storage/v1/b/{BUCKET}/o?upload_id={key}'
        ),
      )
    elif kind == 'multipart':
      mark = re.search(r'boundary="([^"]+)"', self.headers['Content-Type'])[1]
      about, _, content = body.partition(b'\n\n')[2].partition(b'\n\n')
      name = json.loads(about.partition(b'\n')[0])['name']
      self._keep(name, content.removesuffix(f'\n--{mark}--'.encode()), query)
    else:
      self._keep(query['name'], body, query)
