// Reads a JSON list of Kubernetes objects from stdin and writes a JSON list of what is wrong with those of KEDA and
// of the Prometheus operator. The one argument is the folder node_modules with their schemas.
const path = require("path");

const modules = process.argv[2];
const packages = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};

let input = "";
process.stdin.on("data", (chunk) => (input += chunk));
process.stdin.on("end", () => {
  const complaints = [];
  for (const object of JSON.parse(input)) {
    const kinds = require(path.join(modules, packages[object.apiVersion]));
    try {
      new kinds[object.kind](object).validate();
    } catch (error) {
      complaints.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
    }
  }
  process.stdout.write(JSON.stringify(complaints));
});
