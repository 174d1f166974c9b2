"""An OpenAI-compatible server on the continuous-batching scheduler: `python -m minillm.serve`.

reading.py    what a request's JSON means
answers.py    the JSON of answers and errors, and the text that tokens become
worker.py     the one thread that computes, and how tokens get from it to the requests
app.py        the HTTP side: routes, limits, errors, streaming
__main__.py   the command line
"""
