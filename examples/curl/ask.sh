#!/bin/sh
# Asks about an image with nothing but curl, whole and then as a stream.
#
#   examples/curl/ask.sh [IMAGE [QUESTION]]
set -eu
image=${1:-docs/demo/street.png}
question=${2:-"How many shapes are there?"}
url=${PIXTRAL_URL:-http://127.0.0.1:8000}

# By standard input: an image in base64 is longer than an argument may be.
body() {
  cat <<JSON
{
  "messages": [
    {
      "role": "user",
      "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,$(base64 < "$image" | tr -d '\n')"}},
        {"type": "text", "text": "$question"}
      ]
    }
  ],
  "temperature": 0,
  "stream": $1
}
JSON
}

ask() {
  curl --silent --show-error --fail-with-body --no-buffer \
    --header "Authorization: Bearer ${PIXTRAL_API_KEY:-any}" \
    --header "Content-Type: application/json" \
    --data-binary @- "$url/v1/chat/completions"
}

body false | ask
echo
body true | ask
