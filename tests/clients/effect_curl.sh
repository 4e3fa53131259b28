#!/bin/sh
# An effect as a workflow of n8n does it, one HTTP request per node: claim, refund at the vendor, report.
# Exit code 75: a person has to decide.
key=order-7
field() { sed -n "s/.*\"$1\":[ ]*\"\([^\"]*\)\".*/\1/p" "$2"; }
claim() {
    curl -s -o claim -w '%{http_code}' "$GATEWAY/api/v1/effects" -H 'content-type: application/json' \
        -H "Idempotency-Key: $key" -H "x-job-id: $JOB" \
        -d "{\"tool\": \"refund\", \"arguments\": {\"order\": \"$key\"}, \"timeout_ms\": 1500}"
}
status=$(claim)
while [ "$status" = 409 ] && [ "$(field code claim)" = in_progress ]; do sleep 0.3; status=$(claim); done
case $status in
    200) echo "refunded $key $(field provider_id claim)"; exit 0 ;;
    201) ;;
    *) cat claim >&2; exit 75 ;;
esac
effect=$(field effect_id claim) secret=$(field claim_id claim)
answer=$(curl -s --max-time 2 -o refund -w '%{http_code}' "http://$VENDOR/truthful/do" \
    -H "Idempotency-Key: $(field vendor_key claim)" -d "{\"subject\": \"$key\", \"value\": \"$key\"}")
case $answer in
    200) verb=commit report="\"provider_id\": \"$(field id refund)\"" ;;
    422) verb=fail report='"error": {"class": "refused"}' ;;
    *) verb=unknown report='"why": "no answer"' ;;
esac
reported=$(curl -s -o report -w '%{http_code}' "$GATEWAY/api/v1/effects/$effect/$verb" -H 'content-type: application/json' \
    -d "{\"claim_id\": \"$secret\", $report}")
[ "$reported" = 200 ] || { cat report >&2; exit 75; }
[ $verb = commit ] && echo "refunded $key $(field id refund)"
